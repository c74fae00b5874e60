"""`make gpu`, as far as it runs without a GPU: its stages, what they call, the table it fills."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import compile as ahead
from benchmarks.gpu import document, models, more_models, operators, tables
from uniformer_kernels import _extension, cuda
from uniformer_kernels.triton import tuning
from uniformer_kernels.triton.ahead import _binary, _share
from uniformer_kernels.triton.launch import Launch
from uniformer_kernels.triton.plan import planning

built = pytest.mark.skipif(
    not _extension.manifest().get("cuda_architectures"),
    reason="the extension was built without nvcc",
)


@pytest.fixture
def stages(monkeypatch) -> dict[str, list[str]]:
    """Commands in place of the stages', and a GPU that there is none of."""
    gpu = {"gpu": "Some GPU", "gpu_memory": "1 MiB", "driver": "1", "capability": "9.0"}
    monkeypatch.setattr(suite, "_gpu", lambda: gpu)
    monkeypatch.setattr(document, "refresh", lambda found: None)
    monkeypatch.setenv("UNIFORMER_KERNELS_CUDA_ARCHS", "90")
    commands: dict[str, list[str]] = {}
    monkeypatch.setattr(suite, "COMMANDS", commands)
    return commands


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_stage_that_takes_too_long_keeps_its_rows(stages, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite, "LIMITS", dict.fromkeys(suite.LIMITS, 0.7))
    rows, late = tmp_path / "some-gpu" / "operators.rows", tmp_path / "late"
    left_behind = f"import time; time.sleep(1.5); open({str(late)!r}, 'w')"
    stages["operators"] = python(
        f"import subprocess, sys; open({str(rows)!r}, 'w').write('[{{\"what\": \"a\"}}]')\n"
        f"subprocess.run([sys.executable, '-c', {left_behind!r}])"
    )
    stages["check"] = python("print('passed')")
    stages["memory"] = ["no-such-program"]
    assert suite.run(["operators"], tmp_path, 60) == 1
    assert suite.run(["check"], tmp_path, 60) == 0  # which keeps what the first run found
    assert suite.run(["memory"], tmp_path, 60) == 1
    (file,) = (tmp_path / "some-gpu").iterdir()
    found = json.loads(file.read_text())["stages"]
    assert [stage["ok"] for stage in found.values()] == [False, True, False]
    assert found["operators"]["rows"] == [{"what": "a"}]
    assert found["check"]["log"] == ["passed"]
    assert "no-such-program" in found["memory"]["exit"]
    time.sleep(1)
    assert not late.exists()  # it was stopped with what it had started


def test_a_stage_that_is_stopped_as_it_writes_keeps_its_rows(monkeypatch, tmp_path: Path) -> None:
    class Stopped(BaseException):
        pass

    def half(path: Path, text: str) -> None:
        written.append(text)
        with path.open("w") as file:
            file.write(text if len(written) == 1 else text[:7])
        if len(written) > 1:
            raise Stopped

    written: list[str] = []
    rows = tmp_path / "operators.rows"
    stage = SimpleNamespace(run=lambda: iter([{"what": "a"}, {"what": "b"}]))
    monkeypatch.setattr(suite, "import_module", lambda *_: stage)
    monkeypatch.setattr(Path, "write_text", half)
    monkeypatch.setattr(sys, "argv", ["gpu", "operators", "--rows", str(rows)])
    with pytest.raises(Stopped):
        suite.main()
    assert json.loads(rows.read_text()) == [{"what": "a"}]


def test_stages_share_the_time_there_is(stages, tmp_path: Path) -> None:
    """The one that is at work when it is over is stopped, later ones are not begun."""
    stages["check"] = python("import time; time.sleep(60)")
    stages["memory"] = python("print('begun')")
    assert suite.run(["memory"], tmp_path, 60, "abc") == 0
    start = time.monotonic()
    assert suite.run(["check", "memory", "races"], tmp_path, 1.5, "abc") == 1
    assert time.monotonic() - start < 30
    (file,) = (tmp_path / "some-gpu").iterdir()
    assert file.stem.endswith("-abc")
    found = json.loads(file.read_text())["stages"]
    assert found["check"]["exit"] == "stopped after 1 s"
    assert found["races"] == {"ok": False, "exit": "not begun: the minutes were over"}
    assert found["memory"]["log"] == ["begun"]  # what was found before is not lost


def test_skipped_tests_show_nothing(stages, tmp_path: Path) -> None:
    """As all of the CUDA kernels' are where these were not built."""
    for summary, code in (("7 skipped in 1 s", 1), ("1 passed, 6 skipped in 1 s", 0)):
        stages["races"] = [*python(f"print({summary!r})"), "pytest"]
        assert suite.run(["races"], tmp_path, 60) == code


def test_the_tests_it_runs_are_there() -> None:
    """Under the sanitizer those of the CUDA kernels, and no others."""
    command = suite.COMMANDS["races"]
    assert command[1:5] == ["--tool", "racecheck", "--kernel-name", "kns=_ZN2uk4cuda"]
    options = ["--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    collect = [*command[command.index(sys.executable) :], *options]
    done = subprocess.run(collect, capture_output=True, text=True, check=True, cwd=suite.ROOT)
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    counts = Counter(test.split("::")[0] for test in tests)
    assert set(counts) == {"tests/gpu/test_depthwise_conv.py", "tests/gpu/test_tokens.py"}
    assert all(count >= 15 for count in counts.values())
    ways = Counter(re.split(r"[\[-]", test)[1] for test in tests)
    assert all(ways[way] >= 15 for way in ("cuda", "products", "tma"))
    assert not ways["triton"]


@built
def test_every_depthwise_rival_runs(monkeypatch) -> None:
    """On tensors without numbers; autograd needs PyTorch for GPUs."""
    names = set()
    with FakeTensorMode():
        for k, *grid in operators.DEPTHWISE:
            makes = operators.depthwise(k, (2, *grid), "bf16", backward=False)
            for name, make in makes.items():
                if "channels" not in name:  # which are PyTorch's own
                    assert make()().shape == (2, *grid)
                    names.add(name)
        inputs = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        tensors = [inputs(1, 2, 3, 3, 8), inputs(8, 1, 5, 5, 5), inputs(8)]
        for twin in cuda.TWINS:
            y, (dx, dw, db) = operators.twin(twin, lambda: tensors, True)()()
            assert [t.shape for t in (y, dx, dw, db)] == [t.shape for t in (tensors[0], *tensors)]
    assert names == {"ours", "CUDA C++", "CUDA C++, TMA", "CUDA C++, tensor cores"}


def test_winners(monkeypatch) -> None:
    """Every call that is compared is one that both kernels take; slower gradients count."""
    tuner = pytest.importorskip("uniformer_kernels.tune.tuner")
    from uniformer_kernels.tune.calls import models_calls

    monkeypatch.setattr(cuda, "declines", lambda *_: None)
    monkeypatch.setattr(tuner, "_agree", lambda *_: True)
    timed: list[str] = []

    def time(call) -> float:
        kernel = getattr(call, "func", None)
        if kernel is None:
            return 1.0
        timed.append(str(kernel))
        slow = "triton" in timed[-1] or "token_recover_backward" in timed[-1]
        return 1.0 if slow else 0.5

    rows: tuner.Rows = {cuda.TOKENS: {"N800 C224 16 bits": {"faster": True}}}
    with tuning.assuming("sm_90"):
        tuned = tuner.Tuner(rows, torch.device("meta"), time)
        for call in models_calls(2, [torch.bfloat16]):
            tuned.backends(call)
    assert set(rows) == {cuda.CONVOLUTIONS}  # of the tokens' kernels one is slower
    assert rows[cuda.CONVOLUTIONS]["k5x5x5 8x56x56 C64 16 bits"] == {"faster": True}
    assert "k3x3x3 8x14x14 C320 16 bits" in rows[cuda.CONVOLUTIONS]
    assert any("toeplitz_backward" in name for name in timed)
    assert any("tma_backward" in name for name in timed)


@built
def test_a_winner_serves(monkeypatch) -> None:
    """Where the table has it, the CUDA kernel goes first."""
    from uniformer_kernels import explain

    pytest.importorskip("triton")
    rows = {
        cuda.CONVOLUTIONS: {"k3x3x3 2x3x3 C8 32 bits": {"faster": True}},
        cuda.TOKENS: {"N9 C4 32 bits": {"faster": True}},
    }
    monkeypatch.setattr(tuning, "_table", lambda: {"sm_90": rows})
    with tuning.assuming("sm_90"), FakeTensorMode():
        x, weight = (torch.empty(s, device="cuda") for s in ((1, 2, 3, 3, 8), (8, 1, 3, 3, 3)))
        assert "cuda       serves" in explain("depthwise_conv3d", x, weight)
        assert "cuda       serves" in explain("depthwise_conv3d_with_moments", x, weight)
        assert "triton     serves" in explain("depthwise_conv3d", x.half(), weight.half())
        for N, backend in ((9, "cuda  "), (8, "triton")):
            tokens, importance = (torch.empty(s, device="cuda") for s in ((1, N, 4), (1, N)))
            assert f"{backend}     serves" in explain("token_shrink", tokens, importance, 3)


def test_kernels_are_compiled_before_the_stages_that_start_them() -> None:
    """A convolution takes Triton ten seconds, one behind another."""
    with tuning.assuming("sm_90"):
        compiled = {_binary(launch) for launch in ahead.launches()}
        with planning("sm_90") as plan, ahead._WithoutNumbers():
            operators.depthwise(3, (16, *operators.DEPTHWISE[1][1:]), "bf16", backward=True)[
                "ours"
            ]()()
        assert len(plan.launches) >= 3
        assert {_binary(launch) for launch in plan.launches} <= compiled
    passes = {(w.model, w.shape[0], w.training) for w in ahead.WORKLOADS + more_models.WORKLOADS}
    for family, model in {
        models.FIRST[0]: "uniformer_video_small",
        models.FIRST[1]: "uniformer_video_xxs",
        more_models.FAMILIES[0]: "uniformer_video_base",
        more_models.FAMILIES[1]: "uniformer_video_xs",
        more_models.FAMILIES[2]: "uniformerv2_b16",
        more_models.FAMILIES[3]: "uniformer_dense_small",
    }.items():
        *_, largest = family.batches
        assert passes >= {(model, batch, False) for batch in family.batches}
        assert (model, largest, True) in passes
    assert len(tables.workloads()) == 22


def test_rivals_are_compiled_beside_the_kernels(monkeypatch) -> None:
    """Each pass that is measured; where that fails its row will say so."""
    compiled: list[tuple[str, int, bool]] = []

    def compile_rival(family: models.Family, batch: int, trains: bool) -> None:
        if batch == 4:
            raise RuntimeError("no")
        compiled.append((family.name, batch, trains))

    monkeypatch.setattr(ahead, "compile_rival", compile_rival)
    monkeypatch.setattr(ahead, "compile_all", lambda launches: len(list(launches())))
    monkeypatch.setattr(
        ahead, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers)
    )
    families = [models.Family("A", None, (1, 16)), models.Family("B", None, (4, 2))]
    row = ahead.ahead(lambda: iter("abc"), families)
    assert row == {"what": "compiled", "compiled_kernels": 3, "compiled_rivals": 5}
    assert sorted(compiled) == [("A", 1, False), ("A", 16, False), ("A", 16, True)] + [
        ("B", 2, trains) for trains in (False, True)
    ]


def test_a_rivals_pass_is_run(monkeypatch) -> None:
    ran: list[bool] = []

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ran.append(self.training)
            return x

    def run(rivals: dict[str, torch.nn.Module], x: torch.Tensor) -> dict[str, Any]:
        return {name: lambda module=module: lambda: module(x) for name, module in rivals.items()}

    for name, stub in {
        "on_gpu": lambda modules, x: (modules, x),
        "compiled": lambda module: module,
        "training": run,
        "inference": run,
    }.items():
        monkeypatch.setattr(models, name, stub)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    build = lambda count: ({"ours": None, "best": Module()}, torch.ones(count))  # noqa: E731
    for trains in (False, True):
        models.compile_rival(models.Family("A", build, (2,)), 2, trains)
    assert ran == [False, True]


def test_only_kernels_that_were_compiled_count() -> None:
    """A tile that is too large, or all of them where Triton finds no GPU."""

    class Kernel:
        def warmup(self, size: int, *, grid: tuple[int, ...], **options: Any) -> None:
            assert options == {"TILE": size, "enable_fp_fusion": True}
            if size > 16:
                raise RuntimeError("out of resources")

    kernel = Kernel()
    launches = [Launch(kernel, (1,), (size,), {"TILE": size}) for size in (16, 32, 16)]
    assert _share(lambda: launches, 0, 1) == 1


ASTRAY = """
import torch
from tests.gpu.conftest import _one_context_a_failure

def lost():
    raise RuntimeError("an illegal memory access was encountered")

def test_astray():
    torch.cuda.synchronize = lost
    lost()

def test_behind_it():
    torch.cuda.synchronize()
"""


@pytest.mark.parametrize(("processes", "passed"), [(1, 1), (0, 0)])
def test_a_lost_context_fails_one_test(tmp_path: Path, processes: int, passed: int) -> None:
    """Another process takes its place where there are several; else there is nothing to go on."""
    (tmp_path / "torch.py").write_text("class cuda:\n    synchronize = staticmethod(int)\n")
    (tmp_path / "test_it.py").write_text(ASTRAY)
    program = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command = [*program, f"--numprocesses={processes}", f"--rootdir={tmp_path}", str(tmp_path)]
    paths = os.pathsep.join([str(tmp_path), str(suite.ROOT)])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"PYTHONPATH": paths}
    )
    assert done.returncode == 1
    assert "illegal memory access" in done.stdout
    assert ("1 passed" in done.stdout) == bool(passed)
    assert processes or "the GPU can no longer be used" in done.stdout + done.stderr
