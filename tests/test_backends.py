"""Choosing a backend, saying why one declines, and running without a working extension."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import uniformer_kernels as uk
from tests.contract import draw
from uniformer_kernels.backends import BACKENDS, Implementation, Operator, chosen_backend

PACKAGE = Path(uk.__file__).parent
CONVOLVE = """
import torch, uniformer_kernels as uk
x, weight = torch.ones(1, 3, 3, 3, 2), torch.ones(2, 1, 3, 3, 3)
print(int(uk.depthwise_conv3d(x, weight)[0, 1, 1, 1, 0]))
print(uk.explain("depthwise_conv3d", x, weight))
"""


@pytest.fixture
def toy() -> Operator:
    """An operator whose ``cpu`` takes vectors only; unlisted again afterwards."""
    operator = Operator(
        "toy",
        cpu=Implementation(
            lambda x: x + 1, lambda x: None if x.dim() == 1 else f"x has {x.dim()} axes"
        ),
        reference=Implementation(lambda x: x + 2, lambda x: None),
    )
    yield operator
    del uk.backends.OPERATORS["toy"]


def test_takes_the_first_that_can(toy) -> None:
    assert toy(torch.zeros(1)) == 1
    assert toy(torch.zeros(1, 1)) == 2


def test_use_backend_nests(toy) -> None:
    x = torch.zeros(1)
    with uk.use_backend("reference"):
        assert toy(x) == 2
        with uk.use_backend("cpu"):
            assert toy(x) == 1
        assert toy(x) == 2
    assert toy(x) == 1
    assert chosen_backend() is None


def test_use_backend_ends_with_an_exception(toy) -> None:
    with pytest.raises(ZeroDivisionError), uk.use_backend("reference"):
        raise ZeroDivisionError
    assert toy(torch.zeros(1)) == 1


def test_use_backend_is_the_threads_own(toy) -> None:
    """Another thread's choice is its own business."""
    inside, seen = threading.Event(), threading.Event()
    results = []

    def other() -> None:
        inside.wait(10)
        results.append(int(toy(torch.zeros(1))))
        seen.set()

    thread = threading.Thread(target=other)
    thread.start()
    with uk.use_backend("reference"):
        inside.set()
        assert seen.wait(10)
    thread.join()
    assert results == [1]


@pytest.mark.parametrize("name", ["cuda12", "", "CPU", None])
def test_unknown_backend(name) -> None:
    with pytest.raises(ValueError, match=rf"use_backend: expected one of .*cpu.*got {name!r}"):
        uk.use_backend(name).__enter__()
    assert chosen_backend() is None


def test_forced_backend_never_falls_back(toy) -> None:
    with (
        uk.use_backend("cpu"),
        pytest.raises(uk.BackendError, match="toy: the cpu backend declines: x has 2 axes"),
    ):
        toy(torch.zeros(1, 1))


def test_forced_backend_that_lacks_the_operator(toy) -> None:
    del toy.implementations["cpu"]
    with (
        uk.use_backend("cpu"),
        pytest.raises(uk.BackendError, match=r"toy: .*does not implement toy"),
    ):
        toy(torch.zeros(1))


def test_every_reason_when_none_can(toy) -> None:
    del toy.implementations["reference"]
    with pytest.raises(uk.BackendError, match=r"(?s)cpu +declines: x has 2.*reference +declines"):
        toy(torch.zeros(1, 1))


def test_forced_cpu_declines_another_device() -> None:
    x, weight = draw(1, 3, 3, 3, 2).to("meta"), draw(2, 1, 3, 3, 3).to("meta")
    assert uk.depthwise_conv3d(x, weight).shape == x.shape
    with (
        uk.use_backend("cpu"),
        pytest.raises(uk.BackendError, match=r"depthwise_conv3d: the cpu .*x is on meta"),
    ):
        uk.depthwise_conv3d(x, weight)


def test_explain(toy) -> None:
    vector, matrix = torch.zeros(1), torch.zeros(1, 1)
    assert uk.explain("toy", vector).splitlines() == [
        "toy:",
        "  cpu        serves this call",
        "  cuda       declines: it does not implement toy",
        "  triton     declines: it does not implement toy",
        "  reference  could serve",
    ]
    assert uk.explain("toy", matrix).splitlines() == [
        "toy:",
        "  cpu        declines: x has 2 axes",
        "  cuda       declines: it does not implement toy",
        "  triton     declines: it does not implement toy",
        "  reference  serves this call",
    ]
    with uk.use_backend("reference"):
        assert "cpu        could serve, but reference was asked for" in uk.explain("toy", vector)


def test_explain_knows_the_operators() -> None:
    x, weight = draw(1, 3, 3, 3, 2), draw(2, 1, 3, 3, 3)
    lines = uk.explain("depthwise_conv3d", x, weight).splitlines()
    assert [line.split()[0] for line in lines] == ["depthwise_conv3d:", *BACKENDS]
    assert "cpu        serves this call" in lines[1]
    with pytest.raises(ValueError, match=r"operator: expected one of .*linear.*got 'conv'"):
        uk.explain("conv")


def test_a_compiled_function_follows_use_backend() -> None:
    """A choice made after the first compilation is not silently ignored."""
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, _):
        targets[:] = [str(node.target) for node in graph.graph.nodes]
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(uk.depthwise_conv3d, fullgraph=True, backend=backend)
    x, weight = draw(1, 3, 3, 3, 2), draw(2, 1, 3, 3, 3)
    want = compiled(x, weight)
    automatic, targets[:] = list(targets), []
    with uk.use_backend("reference"):
        torch.testing.assert_close(compiled(x, weight), want)
    assert targets, "compiled once only"
    assert targets != automatic
    torch.testing.assert_close(compiled(x, weight), want)


# In processes of their own: what an import decides.


def python(code: str, root: Path = PACKAGE.parent, **variables: str) -> subprocess.CompletedProcess:
    """Run ``code`` with the package found in ``root``."""
    environment = {k: v for k, v in os.environ.items() if k != "UNIFORMER_KERNELS_BACKEND"}
    environment |= {"PYTHONPATH": str(root)} | variables
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False
    )


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of the package whose compiled operators are no library."""
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name)
    (tmp_path / PACKAGE.name / "_C.abi3.so").write_bytes(b"not a library")
    return tmp_path


def test_variable_chooses() -> None:
    result = python(CONVOLVE, UNIFORMER_KERNELS_BACKEND="reference")
    assert result.stdout.startswith("27\n"), result.stderr
    assert "reference  serves this call" in result.stdout


def test_use_backend_overrides_the_variable() -> None:
    code = f"import uniformer_kernels as uk\nwith uk.use_backend('cpu'):\n    exec({CONVOLVE!r})"
    result = python(code, UNIFORMER_KERNELS_BACKEND="reference")
    assert "cpu        serves this call" in result.stdout, result.stderr


def test_variable_must_be_a_backend() -> None:
    result = python(CONVOLVE, UNIFORMER_KERNELS_BACKEND="gpu")
    assert result.returncode != 0
    assert (
        "UNIFORMER_KERNELS_BACKEND: expected one of cpu, cuda, triton, reference, got 'gpu'"
        in result.stderr
    )


def test_broken_extension_says_what_it_was_built_for(broken: Path) -> None:
    result = python(CONVOLVE, broken)
    assert result.returncode == 1
    assert "ImportError: uniformer_kernels: _C.abi3.so cannot be loaded" in result.stderr
    assert "built for: torch >= 2.11" in result.stderr
    assert f"running:   torch {torch.__version__}, Python {sys.version.split()[0]}" in result.stderr
    assert "UNIFORMER_KERNELS_BACKEND=reference" in result.stderr


def test_reference_runs_with_a_broken_extension(broken: Path) -> None:
    result = python(CONVOLVE, broken, UNIFORMER_KERNELS_BACKEND="reference")
    assert result.stdout.startswith("27\n"), result.stderr


def test_reference_serves_without_an_extension(broken: Path) -> None:
    for library in (broken / PACKAGE.name).glob("*.so"):
        library.unlink()
    result = python(CONVOLVE, broken)
    assert result.stdout.startswith("27\n"), result.stderr
    assert "declines: the extension is not built (run `make build`" in result.stdout


def test_forced_cpu_without_an_extension(broken: Path) -> None:
    (broken / PACKAGE.name / "_C.abi3.so").unlink()
    result = python(CONVOLVE, broken, UNIFORMER_KERNELS_BACKEND="cpu")
    assert result.returncode == 1
    assert "BackendError: depthwise_conv3d: the cpu backend declines" in result.stderr
    assert "the extension is not built" in result.stderr
