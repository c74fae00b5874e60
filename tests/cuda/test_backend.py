"""Where the ``cuda`` backend serves, and what it says where it does not."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import uniformer_kernels as uk
from tests.contract import draw
from uniformer_kernels import _extension, cuda, triton
from uniformer_kernels.ops import depthwise_conv
from uniformer_kernels.triton import tuning

ROOT = Path(__file__).parents[2]
BUILT = bool(_extension.manifest().get("cuda_architectures"))
built = pytest.mark.skipif(not BUILT, reason="the extension was built without nvcc")


def test_declines_other_devices_and_dtypes() -> None:
    x, weight = draw(1, 3, 3, 3, 2), draw(2, 1, 3, 3, 3)
    reason = "x is on cpu" if BUILT else "the extension was built without nvcc"
    with uk.use_backend("cuda"), pytest.raises(uk.BackendError, match=f"cuda .*declines: {reason}"):
        uk.depthwise_conv3d(x, weight)
    with uk.use_backend("cuda"), pytest.raises(uk.BackendError, match="does not implement linear"):
        uk.linear(draw(1, 3), draw(2, 3))


@built
@pytest.mark.parametrize(
    ("capability", "architectures", "reason"),
    [
        ((7, 5), ("80", "90a", "100"), r"compute capability \(7, 5\), expected at least \(8, 0\)"),
        ((8, 6), ("90a",), r"compute capability \(8, 6\), the extension was built for sm_90a"),
    ],
    ids=["older than sm_80", "built for another"],
)
def test_declines_a_gpu_that_runs_none_of_it(
    capability, architectures, reason, monkeypatch
) -> None:
    """Asked for it is an error that says so; else the call goes elsewhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(cuda.cannot_run, "__defaults__", (architectures,))
    with FakeTensorMode():
        x, weight = (torch.empty(s, device="cuda") for s in ((1, 2, 3, 3, 4), (4, 1, 3, 3, 3)))
        with uk.use_backend("cuda"), pytest.raises(uk.BackendError, match=f"cuda:0 has {reason}"):
            uk.depthwise_conv3d(x, weight)
        assert "cuda       serves" not in uk.explain("depthwise_conv3d", x, weight)
        tokens, importance = (torch.empty(s, device="cuda") for s in ((1, 9, 4), (1, 9)))
        with uk.use_backend("cuda"), pytest.raises(uk.BackendError, match=reason):
            uk.token_shrink(tokens, importance, 3)


@built
def test_declines_float64() -> None:
    with FakeTensorMode():
        x = torch.empty(1, 3, 3, 3, 2, dtype=torch.float64, device="cuda")
    assert cuda.declines(x) == "x is float64"
    assert cuda.declines(x, "dy") == "dy is float64"


@pytest.mark.parametrize(
    ("capability", "architectures", "reason"),
    [
        ((8, 0), ("80", "90a", "100"), None),
        ((8, 9), ("80", "90a", "100"), None),  # a binary runs on later minor revisions
        ((9, 0), ("80", "90a", "100"), None),
        ((10, 3), ("80", "90a", "100"), None),
        ((12, 0), ("80", "90a", "100"), None),  # from PTX
        ((9, 0), ("80",), None),
        ((7, 5), ("80", "90a", "100"), r"expected at least \(8, 0\)"),
        ((8, 0), ("90a",), "the extension was built for sm_90a"),
        ((10, 0), ("90a",), "the extension was built for sm_90a"),
        ((8, 0), ("86", "90"), "the extension was built for sm_86, sm_90"),
        ((9, 0), (), None),  # unknown: tried
    ],
    ids=str,
)
def test_architectures(capability, architectures, reason) -> None:
    found = cuda.cannot_run(capability, architectures)
    assert found is None if reason is None else re.search(reason, found)


@built
def test_yields_to_triton_unless_asked_for() -> None:
    """Until both have been measured on a GPU."""
    pytest.importorskip("triton")
    with FakeTensorMode():
        x = torch.empty(1, 2, 3, 3, 4, device="cuda")
        weight = torch.empty(4, 1, 3, 3, 3, device="cuda")
        lines = uk.explain("depthwise_conv3d", x, weight).splitlines()
        assert "cuda       could serve, if asked for: " in lines[2]
        assert "triton     serves this call" in lines[3]
        with uk.use_backend("cuda"):
            lines = uk.explain("depthwise_conv3d", x, weight).splitlines()
            assert "cuda       serves this call" in lines[2]
            y, moments = uk.depthwise_conv3d_with_moments(x, weight)
    assert (y.shape, moments.shape) == (x.shape, (2, 4))


@built
def test_declines_too_many_tokens() -> None:
    def shrink(N: int) -> tuple[torch.Tensor, torch.Tensor]:
        importance = torch.empty(1, N, device="cuda")
        return uk.token_shrink(torch.empty(1, N, 4, device="cuda"), importance, 3)

    with FakeTensorMode(), uk.use_backend("cuda"):
        with pytest.raises(uk.BackendError, match="N is 8193, expected at most 8192"):
            shrink(8193)
        tokens, index = shrink(8192)
    assert (tokens.shape, index.shape) == ((1, 4, 4), (1, 3))


@built
def test_serves_where_triton_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(triton, "declines", lambda *_: "Triton is not installed")
    with FakeTensorMode():
        x = torch.empty(1, 2, 3, 3, 4, device="cuda")
        weight = torch.empty(4, 1, 3, 3, 3, device="cuda")
        assert "cuda       serves this call" in uk.explain("depthwise_conv3d", x, weight)
        tokens, importance = torch.empty(1, 9, 4, device="cuda"), torch.empty(1, 9, device="cuda")
        assert "cuda       serves this call" in uk.explain("token_shrink", tokens, importance, 3)


@pytest.mark.parametrize("twin", cuda.TWINS)
def test_twins_serve_where_they_are_faster(twin, monkeypatch) -> None:
    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    def rows_of(*channels: int) -> dict[str, dict[str, bool]]:
        return {f"k5x5x5 2x3x3 C{C} 16 bits": {"faster": True} for C in channels}

    rows = {twin: rows_of(8, 24), f"{twin}_backward": rows_of(8, 32)}
    monkeypatch.setattr(tuning, "_table", lambda: {"sm_90": rows})
    names: list[str] = []

    def called(C: int, dtype: torch.dtype, *wanted: bool) -> list[str]:
        names.clear()
        x = torch.empty(1, 2, 3, 3, C, dtype=dtype, device="cuda")
        weight = torch.empty(C, 1, 5, 5, 5, dtype=dtype, device="cuda")
        depthwise_conv._convolve("cuda", x, weight, None, False)
        depthwise_conv._compute_with_moments("cuda", x, weight, None, False, None)
        found = depthwise_conv._gradients("cuda", x, x, weight, False, *wanted)
        want = [(x.shape, wanted[0]), (weight.shape, wanted[1]), (weight.shape[:1], wanted[1])]
        assert [t.shape for t in found] == [shape if w else (0,) for shape, w in want]
        return [name.split(".")[1] for name in names if name.startswith("uniformer_kernels")]

    plain = ["depthwise_conv3d", "depthwise_conv3d_with_moments", "depthwise_conv3d_backward"]
    twins = [name.replace(cuda.CONVOLUTION, twin) for name in plain]
    forwards, backwards = twins[:2], [twins[2], plain[2]]
    with tuning.assuming("sm_90"), FakeTensorMode(), Called():
        assert called(8, torch.bfloat16, True, True) == twins
        assert called(16, torch.bfloat16, True, True) == plain
        assert called(8, torch.float, True, True) == plain
        assert called(24, torch.bfloat16, True, True) == [*forwards, *backwards]
        assert called(24, torch.bfloat16, True, False) == twins
        assert called(24, torch.half, False, True) == [*forwards, plain[2]]
        assert called(32, torch.half, True, True) == [*plain[:2], *backwards[::-1]]
        assert called(32, torch.half, False, True) == [*plain[:2], twins[2]]


def test_the_tuner_takes_the_fastest_twin_that_is_right(monkeypatch) -> None:
    tuner = pytest.importorskip("uniformer_kernels.tune.tuner")
    x, weight = (torch.empty(s, dtype=torch.half) for s in ((1, 2, 3, 3, 8), (8, 1, 5, 5, 5)))
    calls = {
        "": (cuda.CONVOLUTION, (x, weight, None, False)),
        "_backward": (f"{cuda.CONVOLUTION}_backward", (x, x, weight, False, True, True)),
    }
    faster = {"k5x5x5 2x3x3 C8 16 bits": {"faster": True}}
    asked: list[tuple[bool, ...]] = []

    def kernel(twin: str, result: float, *args: object) -> torch.Tensor:
        asked.append(args[4:])
        return torch.full((2,), result)

    monkeypatch.setattr(cuda, "declines", lambda *_: None)
    for architecture, wrong, products, tma, best in (
        ("sm_90", "", 0.5, 0.6, cuda.TOEPLITZ),
        ("sm_90", "", 0.6, 0.5, cuda.TMA),
        ("sm_80", "", 0.6, 0.5, cuda.TOEPLITZ),  # which has no TMA
        ("sm_90", "", 0.99, 0.98, None),
        ("sm_90", cuda.TOEPLITZ, 0.5, 0.6, cuda.TMA),
    ):
        times = {cuda.CONVOLUTION: 1.0, cuda.TOEPLITZ: products, cuda.TMA: tma}
        for suffix, call in calls.items():
            kernels = {
                f"{twin}{suffix}": partial(kernel, twin, 2.0 if twin == wrong else 1.0)
                for twin in times
            }
            monkeypatch.setattr(tuner, "kernels", lambda _, of=kernels: SimpleNamespace(**of))
            # The last winner's row goes where another one wins.
            rows = {f"{cuda.TMA}{suffix}": dict(faster)} if architecture == "sm_90" else {}
            with tuning.assuming(architecture):
                tuned = tuner.Tuner(rows, x.device, lambda call, times=times: times[call.args[0]])
                for one in (call, ("linear", (x, weight))):
                    tuned.twins(one)
            assert rows == ({f"{best}{suffix}": faster} if best else {})
    assert set(asked) == {(), (False, True)}  # the input's gradient is a convolution


def test_the_table_is_read_as_it_was_written(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tuning, "TABLE", tmp_path / "tuning.json")
    tuning.TABLE.write_text("{}")
    tuning._table.cache_clear()
    row = {"k5x5x5 2x3x3 C8 16 bits": {"faster": True}}
    try:
        tuning.rewrite("sm_90", {f"{cuda.TOEPLITZ}_backward": row, cuda.TMA: row})
        with tuning.assuming("sm_90"):
            x = torch.empty(1, 2, 3, 3, 8, dtype=torch.half)
            weight = torch.empty(8, 1, 5, 5, 5, dtype=torch.half)
            assert cuda.fastest(x, weight, "_backward") == cuda.TOEPLITZ
            assert cuda.fastest(x, weight) == cuda.TMA
    finally:
        tuning._table.cache_clear()


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype", "twins"),
    [
        ((8, 56, 56, 64), (5, 5, 5), torch.bfloat16, cuda.TWINS),
        ((8, 56, 56, 64), (5, 5, 5), torch.float32, (cuda.TMA,)),
        ((8, 56, 56, 64), (3, 3, 3), torch.half, (cuda.TMA,)),
        ((8, 14, 14, 768), (3, 1, 1), torch.half, (cuda.TMA,)),
        ((2, 5, 6, 12), (3, 3, 3), torch.half, ()),  # not 16 bytes
        ((2, 5, 6, 16), (3, 5, 7), torch.half, ()),  # no tiles
        ((2, 5, 6, 16), (3, 7, 7), torch.half, ()),
    ],
    ids=str,
)
def test_twins_that_are_tried(shape, kernel, dtype, twins) -> None:
    x, weight = torch.empty(1, *shape, dtype=dtype), torch.empty(shape[-1], 1, *kernel, dtype=dtype)
    assert tuple(twin for twin in cuda.TWINS if cuda.allows(twin, x, weight)) == twins


@built
def test_loads_without_cuda() -> None:
    """What is in libtorch_cuda only is weak, and CUDA's runtime is inside."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    library = Path(uk.__file__).with_name("_C.abi3.so")
    command = ["nm", "--dynamic", "--undefined-only", str(library)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    undefined = {line.split()[-1]: line.split()[-2] for line in lines}
    assert undefined["aoti_torch_get_current_cuda_stream"] == "w"
    assert not [name for name in undefined if name.startswith(("cuda", "cu", "torch_c10_cuda"))]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"UNIFORMER_KERNELS_CUDA": "yes"}, "expected auto, 0 or 1, got 'yes'"),
        ({"UNIFORMER_KERNELS_CUDA_ARCHS": "80;sm_90"}, r"expected numbers .*, got '80;sm_90'"),
    ],
    ids=["no choice", "no architecture"],
)
def test_builds_say_what_is_wrong(variables, message, tmp_path) -> None:
    command = [sys.executable, str(ROOT / "setup.py"), "--quiet", "build_ext"]
    command += ["--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | variables
    )
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("wanted", "in_place", "gpu", "compiled"),
    [
        ("auto", False, False, True),  # a wheel is for other machines
        ("auto", True, True, True),
        ("auto", True, False, False),
        ("1", True, False, True),
        ("0", False, True, False),
    ],
)
def test_what_builds_compile(wanted, in_place, gpu, compiled, monkeypatch) -> None:
    monkeypatch.setenv("UNIFORMER_KERNELS_CUDA", wanted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    find_nvcc = runpy.run_path(str(ROOT / "setup.py"))["find_nvcc"]
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/some/nvcc")
    assert find_nvcc(in_place=in_place) == ("/some/nvcc" if compiled else None)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    if wanted == "1":
        with pytest.raises(SystemExit, match=r"expected nvcc on PATH or in CUDA_HOME, got none"):
            find_nvcc(in_place=in_place)
    else:
        assert find_nvcc(in_place=in_place) is None
