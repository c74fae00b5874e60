"""The experiments for a GPU, as far as they run without one: what they measure and conclude."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import gpu_experiments
from benchmarks.gpu import operators, probes, sections
from benchmarks.gpu.questions import convolutions, launches, products
from benchmarks.gpu.questions.convolutions import CUDNN, DENSE, FMA, NATIVE, TOEPLITZ
from benchmarks.gpu.rows import OURS
from benchmarks.gpu_experiments import EXPERIMENTS
from uniformer_kernels.bench.timing import Samples


@pytest.fixture
def seconds(monkeypatch) -> dict[str, float]:
    """What every rival takes, by name, in place of measuring it: a microsecond unless said."""
    taken: dict[str, float] = {}

    def compare(rivals: dict[str, Any], **_: Any) -> dict[str, Samples]:
        return {name: Samples([taken.get(name, 1e-6)]) for name in rivals}

    compare_by(monkeypatch, compare)
    gpu = SimpleNamespace(multi_processor_count=100)
    monkeypatch.setattr(convolutions, "repeats", lambda call: True)
    monkeypatch.setattr(convolutions, "full_speed", lambda: 2e9)
    for name, stub in {
        "kernels": lambda call: 7,
        "on_gpu": lambda modules, clips: (modules, clips),
        "inference": lambda modules, _: dict.fromkeys(modules, int),
        "small": lambda batch: (dict.fromkeys((OURS, "SDPA + channels-last"), nn.Identity()), 1),
        "xxs": lambda batch: ({OURS: nn.Identity()}, 1),
    }.items():
        monkeypatch.setattr(launches, name, stub)
    monkeypatch.setattr(probes, "multiplying", lambda: (int, 2 * 8192**3))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    return taken


def compare_by(monkeypatch, compare) -> None:
    for theme in (convolutions, launches, products):
        monkeypatch.setattr(theme, "compare", compare)


def measured(number: int) -> list[dict[str, Any]]:
    with FakeTensorMode():
        return list(gpu_experiments.run([number]))


def answer(number: int, rows: list[dict[str, Any]]) -> str:
    return {n: text for n, _, text in gpu_experiments.answers(rows)}[number]


ROWS = {1: 48, 2: 2, 3: 8, 4: 2, 5: 3, 6: 8, 7: 48, 8: 2, 9: 8, 10: 4}


@pytest.mark.parametrize("number", EXPERIMENTS)
def test_every_experiment_has_its_rows(number, seconds) -> None:
    rows = measured(number)
    assert len(rows) == ROWS[number]
    assert len({row["what"] for row in rows}) == len(rows)
    assert all(row["experiment"] == number and row["median_us"] for row in rows)
    assert answer(number, rows) != "not measured"
    assert answer(number % 10 + 1, rows) == "not measured"


def test_the_faster_baseline_is_the_one_to_beat(seconds) -> None:
    seconds[NATIVE] = 3e-6
    text = answer(1, measured(1))
    assert text.count(f"{CUDNN} 16") == 3
    assert NATIVE not in text


@pytest.mark.parametrize(
    ("number", "slow", "text"),
    [
        (2, CUDNN, f"{DENSE} is 4.00 to 4.00× as fast as {CUDNN}: it serves 2 of 2 cases"),
        (5, TOEPLITZ, f"{TOEPLITZ} is 0.25 to 0.25× as fast as {FMA}: it serves 0 of 3 cases"),
        (6, NATIVE, "it serves 8 of 8 cases; bitwise the same in 8 of 8"),
        (8, "cuBLASLt", "ours is 4.00 to 4.00× as fast as cuBLASLt: it serves 2 of 2 cases"),
    ],
)
def test_who_is_faster(number, slow, text, seconds) -> None:
    seconds[slow] = 4e-6
    assert text in answer(number, measured(number))


def test_clocks_of_an_output(seconds) -> None:
    """100 processors at 2 GHz that make 16 x 8 x 56 x 56 x 64 outputs in 200 us."""
    seconds[FMA] = 200e-6
    first, *_ = measured(3)
    outputs = 16 * 8 * 56 * 56 * 64
    assert first["what"].startswith("depthwise k5 8×56×56×64")
    assert first["clocks_per_output"] == pytest.approx(200e-6 * 2e9 * 100 / outputs)
    text = answer(3, [first])
    assert f"k5 {first['clocks_per_output']:.2f} clk/out of 1.18" in text
    assert "stalls" in answer(3, [first | {"clocks_per_output": 2.0}])
    assert "as designed" in answer(3, [first | {"clocks_per_output": 1.3}])


def test_tensor_cores_share(seconds) -> None:
    rows = measured(4)
    assert "100% of a large matmul: Toeplitz pays" in answer(4, rows)
    rows[0]["flop_per_s"] /= 3
    assert "33% of a large matmul: Toeplitz does not pay" in answer(4, rows)


def test_attention_names_what_is_behind(seconds) -> None:
    seconds["SDPA cuDNN"] = 0.8e-6
    assert "attention 1568 × 5 × 64, batch 16 bf16, forward;" in answer(7, measured(7))
    seconds["SDPA cuDNN"] = 0.95e-6
    assert answer(7, measured(7)) == "Triton's kernel serves all of them"


def test_what_graphs_and_programmatic_launches_gain(seconds) -> None:
    rows = measured(9)
    rows[0]["median_us"][OURS] = 2.5
    assert "UniFormer-S 16×224 inference 2.5×" in answer(9, rows)
    assert rows[1]["kernels"][OURS] == 7
    rows = measured(10)
    rows[0]["median_us"][OURS], rows[1]["median_us"][OURS] = 128.0, 64.0
    assert "2.00 µs from kernel to kernel in a graph, 1.00 with" in answer(10, rows)
    assert "are worth having" in answer(10, rows)
    rows[1]["median_us"][OURS] = 120.0
    assert "gain too little" in answer(10, rows)


def test_what_did_not_run_decides_nothing(seconds, monkeypatch) -> None:
    failed = lambda rivals, **_: dict.fromkeys(rivals, "RuntimeError: no")  # noqa: E731
    compare_by(monkeypatch, failed)
    for number in (2, 3, 4, 5, 8, 9, 10):
        assert "did not run" in answer(number, measured(number))


@pytest.mark.parametrize("number", EXPERIMENTS)
def test_a_stage_that_was_stopped_still_answers(number, seconds) -> None:
    rows = measured(number)
    assert all(answer(number, rows[:count]) for count in range(1, len(rows)))


def test_bitwise_repeatable() -> None:
    results = iter([torch.ones(2)] * 9 + [torch.tensor([1.0, 1.0 + 2**-20])])
    assert not convolutions.repeats(lambda: next(results))
    assert convolutions.repeats(lambda: torch.ones(2))


def test_pytorchs_passes_run(monkeypatch) -> None:
    """On this processor: each gives the gradient that it is asked for, and no other."""
    monkeypatch.setattr(convolutions, "_DEVICE", "cpu")
    for layout in (CUDNN, NATIVE):
        for mask in convolutions._PASSES.values():
            call = convolutions._convolution(3, (2, 3, 4, 5, 6), torch.float64, layout, mask)()
            if mask is None:
                assert call().shape == (2, 6, 3, 4, 5)
            else:
                assert [t is not None for t in call()] == mask


def test_the_document_has_a_line_for_each() -> None:
    text = sections.performance(None)
    for number, experiment in EXPERIMENTS.items():
        assert f"| {number}. {experiment.question} | not measured |" in text


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_probes_are_what_they_say(tmp_path: Path) -> None:
    """Eight products a step in registers, and kernels that wait for each other."""
    source = ["nvcc", "-O3", "-std=c++17", "-arch=sm_90", "-ptx", str(probes.SOURCE)]
    subprocess.run([*source, "-o", str(tmp_path / "probes.ptx")], check=True)
    text = (tmp_path / "probes.ptx").read_text()
    assert text.count("mma.sync.aligned.m16n8k16") % probes._SUMS == 0 < text.count("mma.sync")
    assert ".local" not in text
    for instruction in ("griddepcontrol.wait", "griddepcontrol.launch_dependents"):
        assert instruction in text
    library = probes.compile_for("90", tmp_path).read_bytes()
    for function in (b"multiply_in_registers", b"chain"):
        assert function in library


def test_every_shape_is_an_operators() -> None:
    assert {k for k, *_ in operators.DEPTHWISE} == set(convolutions._ISSUE_BOUND)
