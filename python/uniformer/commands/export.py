"""``uniformer export``: a model as a file that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options


def export(
    model: Annotated[str, typer.Argument(help="As `uniformer models` lists them.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .pt2 or .onnx file.")],
    file_format: Annotated[
        str, typer.Option("--format", help="torch (torch.export), onnx or aot (AOTInductor).")
    ] = "torch",
    checkpoint: options.OptionalCheckpoint = None,
    keyword: options.Keywords = None,
    classes: Annotated[int | None, typer.Option(help="Of random weights.", min=1)] = None,
    frames: options.Frames = None,
    size: Annotated[
        list[int] | None, typer.Option(help="Of the input: a side, or height, then width.", min=1)
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Keep our operators; the reader imports them.")
    ] = False,
    fixed_batch: Annotated[
        int | None, typer.Option(help="Take just so many samples; else any number.", min=2)
    ] = None,
) -> None:
    """Write a model in another format; it is loaded back and held against the model first."""
    import torch
    from rich.console import Console

    from ..export import ExportError
    from ..export import export as write

    if len(size or ()) > 2:
        raise options.CommandError(f"size: expected a side, or height and width, got {size}")
    net = options.new_model(model, checkpoint, keyword, classes)
    channels, *usual = net.pretrained_cfg["input_size"]
    sides = usual[-2:] if not size else [size[0], size[-1]]
    if frames is not None and len(usual) == 2:
        raise options.CommandError(f"frames: expected none for images, got {frames}")
    axes = [frames or usual[0], *sides] if len(usual) == 3 else sides
    inputs = torch.randn(fixed_batch or 2, channels, *axes)
    with options.explained():
        try:
            error = write(
                net,
                inputs,
                out,
                format=file_format,
                kernels=kernels,
                dynamic_batch=fixed_batch is None,
            )
        except (ExportError, OSError) as failure:
            raise options.CommandError(str(failure)) from failure
    batch = fixed_batch or "any number"
    Console().print(
        f"Written: {options.printable(out)} ({out.stat().st_size / 2**20:.1f} MiB), of {batch} × "
        f"{' × '.join(map(str, inputs.shape[1:]))}; differs from the model by {error:.1e} at most",
        markup=False,
        soft_wrap=True,
    )
