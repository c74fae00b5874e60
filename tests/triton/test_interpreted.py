"""Plans and the tuner against kernels that run, in Triton's interpreter."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.contract import evaluate
from tests.ops.calls import CALLS, Call
from uniformer_kernels import ops
from uniformer_kernels.triton import INTERPRETED, tuning

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.operator)
def test_what_is_planned_is_what_runs(call: Call, backend: str) -> None:
    """The same kernels in the same order with the same grids and constants."""
    from uniformer_kernels.triton.launch import recording
    from uniformer_kernels.triton.plan import planning

    inputs = call.inputs()
    with recording() as run:
        evaluate(call.kernel, inputs, needs=call.needs)
    with planning("interpreter") as plan:
        metas = {name: t.to("meta") for name, t in inputs.items()}
        evaluate(call.kernel, metas, needs=call.needs)
    assert run
    assert [(x.kernel, x.grid, x.options) for x in plan.launches] == [
        (x.kernel, x.grid, x.options) for x in run
    ]


def test_tuner_takes_what_is_faster_and_right(backend: str, monkeypatch) -> None:
    from uniformer_kernels.tune import calls, tuner

    def run() -> None:
        x = torch.empty(1, 2, 3, 4, 8, device="meta")
        ops.depthwise_conv3d(x, torch.empty(8, 1, 1, 3, 3, device="meta"))

    good, wrong, broken = {"BLOCK_C": 8}, {"BLOCK_C": 16}, {"BLOCK_C": 24}
    (call,) = calls.calls_of(run)
    assert call[0] == "depthwise_conv3d"
    tunable = tuning.KERNELS["depthwise_conv3d"]
    monkeypatch.setattr(tunable, "space", [wrong, good, broken])
    tried: list[object] = []

    def time(call) -> float:
        call()
        tried.append(tunable._tried.get())
        return 1.0 if tunable._tried.get() == {} else 0.5

    monkeypatch.setattr(tuner, "_agree", lambda got, want: tunable._tried.get() != wrong)
    rows: tuner.Rows = {}
    tuner.Tuner(rows, torch.device("cpu"), time).tiles(call)
    (found,) = rows["depthwise_conv3d"].values()
    assert found == good
    assert wrong not in tried
    assert broken not in tried
    # What does not gain any more loses its row; a class that is not measured keeps its.
    rows["depthwise_conv3d"]["another"] = good
    tuner.Tuner(rows, torch.device("cpu"), lambda call: 1.0).tiles(call)
    assert rows == {"depthwise_conv3d": {"another": good}}


def test_a_stopped_tuner_keeps_tiles_alone(monkeypatch) -> None:
    """A backend's row holds once all calls of its class are measured, those of gradients too."""
    from uniformer_kernels.tune import __main__ as command

    class Tuner:
        def __init__(self, rows: dict, device: torch.device, time: object) -> None:
            self.rows = rows

        def tiles(self, call: str) -> None:
            self.rows["tiles"] = call

        def twins(self, call: str) -> None:
            if call == "second":
                raise KeyboardInterrupt

        def backends(self, call: str) -> None:
            self.rows["backend"] = call

    written: list[dict] = []
    for name, stub in {
        "Tuner": Tuner,
        "compile_all": lambda launches: 0,
        "models_calls": lambda batch, dtypes: ["first", "second"],
    }.items():
        monkeypatch.setattr(command, name, stub)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuning, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(tuning, "rewrite", lambda name, rows: written.append(dict(rows)))
    monkeypatch.setattr("sys.argv", ["tune"])
    with pytest.raises(KeyboardInterrupt):
        command.main()
    assert written == [{"tiles": "first"}, {"tiles": "second"}]


def test_table_is_asked_and_rewritten(backend: str, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tuning, "TABLE", tmp_path / "tuning.json")
    tuning.TABLE.write_text('{"sm_80": {"other": {"all": {"N": 1}}}}')
    tuning._table.cache_clear()
    tunable = tuning.Tunable("toy", space=[])
    ask = partial(tunable.options, torch.device("cpu"), "small", N=2, M=3)
    try:
        assert ask() == {"N": 2, "M": 3}
        tuning.rewrite("interpreter", {"toy": {"small": {"N": 4}}})
        assert ask() == {"N": 4, "M": 3}
        with tunable.trying(N=5):
            assert ask() == {"N": 5, "M": 3}
        with tuning.assuming("sm_80"):
            assert ask() == {"N": 2, "M": 3}
        assert '"other"' in tuning.TABLE.read_text()
        before = tuning.TABLE.read_text()
        monkeypatch.setattr(Path, "write_text", lambda path, text: path.write_bytes(b"{") / 0)
        with pytest.raises(ZeroDivisionError):  # stopped while it writes
            tuning.rewrite("interpreter", {})
        assert tuning.TABLE.read_text() == before
    finally:
        del tuning.KERNELS["toy"]
        tuning._table.cache_clear()


def test_tuner_knows_every_kernel(backend: str) -> None:
    """Its calls ask for the options of all that have some, at least once."""
    from uniformer_kernels.tune import calls

    with tuning.asking() as asked:
        found = calls.calls_of(lambda: calls.operators(2, torch.float16))
    assert {name for name, _ in asked} == set(tuning.KERNELS)
    assert len(found) > len({name for name, _ in found}) > 10
    with tuning.asking() as tried:
        launches = list(calls.candidates(2, [torch.float16], "sm_90"))
    assert tried == asked
    most = max(len(tunable.space) for tunable in tuning.KERNELS.values())
    assert len(launches) > most * len(tuning.KERNELS)
