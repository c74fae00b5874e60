"""Models as files that run without this package: torch.export, ONNX, AOTInductor."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from uniformer_kernels import decompositions

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx", "aot": ".pt2"}
"""The formats, and how their files' names end."""

TOLERANCE = 1e-4
"""By how much an exported model may differ, of the largest output: float32 added up differently."""

OPSET = 20

Outputs = tuple[Tensor, ...]


class ExportError(RuntimeError):
    """A model cannot be exported, or what came out computes something else."""


def export(
    model: nn.Module,
    inputs: Tensor,
    path: str | os.PathLike,
    *,
    format: str,
    kernels: bool = False,
    dynamic_batch: bool = True,
) -> float:
    """Write a model in another format, load it back, and hold it against the model.

    ``"torch"`` is read by ``torch.export.load``, ``"onnx"`` by onnxruntime, TensorRT and OpenVINO,
    ``"aot"``, compiled for this machine by AOTInductor, by ``torch._inductor.aoti_load_package``.

    Args:
        model: of ``create_model``, float32; is exported as it is in evaluation, and not changed.
        inputs: images or clips as the model takes them, at least two: their size becomes the
            model's.
        path: the file; until the new one is whole and checked, one already there stays.
        format: one of the above.
        kernels: whether the operators stay those of ``uniformer_kernels``, which the reader then
            has to import; else everything is plain PyTorch.
        dynamic_batch: whether the file takes any number of samples, not just as many.

    Returns:
        The largest difference of the outputs, of samples of noise, relative to the largest output.

    Raises:
        ValueError: there is no such format, the path ends otherwise, ONNX is asked for with
            kernels, or there are less than two inputs.
        ImportError: a package is missing.
        ExportError: the exporter fails, or what it wrote differs by more than ``TOLERANCE``.
    """
    path = Path(path)
    if format not in SUFFIXES:
        raise ValueError(f"format: expected one of {', '.join(SUFFIXES)}, got {format!r}")
    if path.suffix != SUFFIXES[format]:
        raise ValueError(f"path: expected a {SUFFIXES[format]} name for {format}, got '{path}'")
    if format == "onnx" and kernels:
        raise ValueError("kernels: ONNX has no such operators; expected False")
    if len(inputs) < 2:
        raise ValueError(f"inputs: expected at least 2 samples, got {len(inputs)}")
    if format == "onnx":
        _require("onnx", "onnxruntime", "onnxscript")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    write, read = _FORMATS[format]
    with TemporaryDirectory(prefix=".export-", dir=path.parent) as folder, _quiet():
        unfinished = Path(folder, path.name)
        try:
            program = torch.export.export(model, (inputs,), dynamic_shapes=_shapes(dynamic_batch))
            if not kernels:
                program = program.run_decompositions(decompositions())
            write(program, inputs, unfinished)
        except Exception as error:  # exporters raise anything, and wrap it in advice
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = str(cause).strip().splitlines() or [type(cause).__name__]
            raise ExportError(f"export: {format} failed: {reason[0]}") from error
        off = _difference(model, read(unfinished), inputs, dynamic_batch)
        if not off <= TOLERANCE:
            raise ExportError(
                f"export: expected outputs within {TOLERANCE:g} of the model's, got {off:.1e} "
                f"by {format}; '{path}' was not written"
            )
        os.replace(unfinished, path)
    return off


def _shapes(dynamic_batch: bool) -> tuple | None:
    return ({0: Dim("batch", min=1)},) if dynamic_batch else None


def _difference(
    model: nn.Module, exported: Callable[[Tensor], Outputs], inputs: Tensor, dynamic_batch: bool
) -> float:
    """The largest relative difference over noise, of one sample more than at the export, too."""
    sizes = (len(inputs), len(inputs) + 1) if dynamic_batch else (len(inputs),)
    generator, worst = torch.Generator().manual_seed(1), 0.0
    for size in sizes:
        noise = torch.randn(size, *inputs.shape[1:], generator=generator)
        with torch.no_grad():
            expected = _tuple(model(noise))
        for got, want in zip(exported(noise), expected, strict=True):
            if got.shape != want.shape:
                return float("inf")
            worst = max(worst, float((got - want).abs().max() / want.abs().max()))
    return worst


def _tuple(outputs: Tensor | Sequence[Tensor]) -> Outputs:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _write_torch(program: ExportedProgram, _: Tensor, path: Path) -> None:
    torch.export.save(program, path)


def _read_torch(path: Path) -> Callable[[Tensor], Outputs]:
    module = torch.export.load(path).module()
    return lambda x: tuple(y.detach() for y in _tuple(module(x)))


def _write_onnx(program: ExportedProgram, inputs: Tensor, path: Path) -> None:
    torch.onnx.export(
        program,
        (inputs,),
        path,
        dynamo=True,
        opset_version=OPSET,
        input_names=["input"],
        external_data=False,
        verbose=False,
    )


def _read_onnx(path: Path) -> Callable[[Tensor], Outputs]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: tuple(map(torch.from_numpy, session.run(None, {"input": x.numpy()})))


def _write_aot(program: ExportedProgram, _: Tensor, path: Path) -> None:
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _read_aot(path: Path) -> Callable[[Tensor], Outputs]:
    module = torch._inductor.aoti_load_package(str(path))
    return lambda x: _tuple(module(x))


_FORMATS = {
    "torch": (_write_torch, _read_torch),
    "onnx": (_write_onnx, _read_onnx),
    "aot": (_write_aot, _read_aot),
}


def _require(*packages: str) -> None:
    from importlib.util import find_spec

    if missing := [package for package in packages if find_spec(package) is None]:
        raise ImportError(
            f"ONNX needs {', '.join(missing)}: pip install 'uniformer-kernels[export]'"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell of their own deprecations, and of torchvision's absence."""
    import logging

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
