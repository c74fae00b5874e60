"""``uniformer bench``: what the kernels gain on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import options


def bench(
    model: Annotated[str, typer.Argument(help="As `uniformer models` lists them.")],
    keyword: options.Keywords = None,
    batch: Annotated[int, typer.Option(help="Samples at a time.", min=1)] = 2,
    frames: options.Frames = None,
    size: Annotated[int | None, typer.Option(help="Height and width.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="How often each is timed.", min=1)] = 5,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Time forward pass and training step: the kernels against plain PyTorch, channels-last.

    Both run the same work in turn; the figures are medians. Random weights and inputs.
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from ..bench import JOBS, measure
    from ..engine.distributed import join_world

    net = options.new_model(model, None, keyword)
    channels, *usual = net.pretrained_cfg["input_size"]
    sides = [size or usual[-2], size or usual[-1]]
    axes = [frames or usual[0], *sides] if len(usual) == 3 else sides
    with join_world(device) as world, options.explained():
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=2 * len(JOBS) * (1 + rounds))
            shape, net = [batch, channels, *axes], net.to(world.device)
            jobs = measure(net, shape, rounds=rounds, advance=lambda: progress.advance(task))
        figures = {
            "model": model,
            "input": shape,
            "device": str(world.device),
            "threads": torch.get_num_threads(),
            "rounds": rounds,
            **jobs,
        }
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _show(figures, JOBS)


def _show(figures: dict[str, Any], jobs: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("plain PyTorch", "kernels", "ratio"):
        table.add_column(column, justify="right")
    for name in jobs:
        row = figures[name]
        times = (f"{row[path] * 1e3:,.1f} ms" for path in ("plain", "kernels"))
        table.add_row(name, *times, f"{row['ratio']:.2f}×")
    console = Console()
    console.print(table)
    console.print(
        f"{figures['model']}, {' × '.join(map(str, figures['input']))}, {figures['device']}, "
        f"{figures['threads']} threads, medians of {figures['rounds']}",
        style="dim",
    )
