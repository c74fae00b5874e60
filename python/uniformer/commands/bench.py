"""``uniformer bench``: what the kernels gain on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress


def bench(
    model: Annotated[str | None, typer.Argument(help="As `uniformer models` lists them.")] = None,
    keyword: options.Keywords = None,
    batch: Annotated[int, typer.Option(help="Samples at a time.", min=1)] = 2,
    frames: options.Frames = None,
    size: Annotated[int | None, typer.Option(help="Height and width.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="How often each is timed.", min=1)] = 5,
    preset: Annotated[
        str | None,
        typer.Option(help="table11, table12 or table23 of the TPAMI paper, without a MODEL."),
    ] = None,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Time forward pass and training step: the kernels against plain PyTorch, channels-last.

    Both run the same work in turn; the figures are medians. Random weights and inputs. A preset
    times the forward passes of a table of the paper, and shows its figures beside them.
    """
    if (model is None) == (preset is None):
        raise options.CommandError("bench: expected a MODEL or --preset, and not both")
    if preset is not None and (keyword or frames or size):
        raise options.CommandError("bench: --preset: its models and sizes are those of the paper")
    if preset is not None:
        figures = _preset(preset, batch, rounds, device)
    else:
        figures = _model(model, keyword, batch, frames, size, rounds, device)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        (_show if preset is None else _show_preset)(figures)


def _model(
    model: str,
    keyword: list[str] | None,
    batch: int,
    frames: int | None,
    size: int | None,
    rounds: int,
    device: str,
) -> dict[str, Any]:
    """Both jobs of one model."""
    from ..bench import JOBS, calls, measure
    from ..engine.distributed import join_world

    net = options.new_model(model, None, keyword)
    channels, *usual = net.pretrained_cfg["input_size"]
    sides = [size or usual[-2], size or usual[-1]]
    axes = [frames or usual[0], *sides] if len(usual) == 3 else sides
    with join_world(device) as world, options.explained(), _progress() as progress:
        task = progress.add_task("", total=calls(JOBS, rounds))
        shape, net = [batch, channels, *axes], net.to(world.device)
        jobs = measure(net, shape, rounds=rounds, advance=lambda: progress.advance(task))
        return {"model": model, "input": shape, **_conditions(world.device, rounds), **jobs}


def _preset(name: str, batch: int, rounds: int, device: str) -> dict[str, Any]:
    """The forward pass of every row of a table."""
    from ..bench import JOBS, calls, measure
    from ..engine.distributed import join_world
    from ..registry import create_model
    from ..throughput import PRESETS

    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise options.CommandError(f"bench: --preset: expected one of {known}, got {name!r}")
    settings, forward = PRESETS[name], JOBS[:1]
    rows = []
    with join_world(device) as world, options.explained(), _progress() as progress:
        task = progress.add_task("", total=len(settings) * calls(forward, rounds))
        for setting in settings:
            net = create_model(setting.model, **setting.keywords).to(world.device)
            found = measure(
                net,
                [batch, 3, *setting.input_size],
                jobs=forward,
                rounds=rounds,
                advance=lambda: progress.advance(task),
            )[forward[0]]
            per_second = {path: batch / found[path] for path in ("plain", "kernels")}
            published = {"setting": str(setting), "a100": setting.per_second}
            rows.append({**published, **per_second, "ratio": found["ratio"]})
        conditions = _conditions(world.device, rounds)
    return {"preset": name, "batch": batch, **conditions, "rows": rows}


def _conditions(device: torch.device, rounds: int) -> dict[str, Any]:
    import torch

    return {"device": str(device), "threads": torch.get_num_threads(), "rounds": rounds}


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True)


def _show(figures: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ..bench import JOBS

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("plain PyTorch", "kernels", "ratio"):
        table.add_column(column, justify="right")
    for name in JOBS:
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


def _show_preset(figures: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("samples a second")
    for column in ("paper, A100", "plain PyTorch here", "kernels here", "ratio"):
        table.add_column(column, justify="right")
    for row in figures["rows"]:
        here = (f"{row[path]:,.1f}" for path in ("plain", "kernels"))
        table.add_row(row["setting"], f"{row['a100']:,}", *here, f"{row['ratio']:.2f}×")
    console = Console()
    console.print(table)
    console.print(
        f"{figures['preset']} of the TPAMI paper; here {figures['device']}, {figures['threads']} "
        f"threads, float32, {figures['batch']} at a time, medians of {figures['rounds']}",
        style="dim",
    )
