"""``uniformer profile``: where a model's time goes, block by block."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

    from ..profiling import Row

_DTYPES = ("float32", "bfloat16", "float16")
_FIGURES = {  # of a cost: heading, unit, how many of its units one of the heading's is
    "seconds": ("time", "ms", 1e-3),
    "bytes": ("moved", "MB", 1e6),
    "launches": ("launches", "", 1),
}
_COLOURS = {"eager": "#b8bec8", "kernels": "#2f6fed"}


def profile(
    model: Annotated[str, typer.Argument(help="As `uniformer models` lists them.")],
    keyword: options.Keywords = None,
    size: Annotated[
        str | None, typer.Option("--input", help="Of one input, 16x224x224 or 224x224.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Inputs at a time.", min=1)] = 1,
    dtype: Annotated[str, typer.Option(help=f"{', '.join(_DTYPES)}.")] = "float32",
    train: Annotated[bool, typer.Option("--train", help="Forward and backward.")] = False,
    rounds: Annotated[int, typer.Option(help="Timed passes of each.", min=1)] = 10,
    device: options.Device = "auto",
    out: Annotated[
        Path, typer.Option(help="Folder for chart and figures.", file_okay=False)
    ] = Path("profile"),
) -> None:
    """Measure every block of a model on the kernels and in eager PyTorch.

    Time, bytes that operators read and write, launches. Weights are random. In training bfloat16
    and float16 are autocast's, otherwise also the weights'.
    """
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress

    from ..engine.distributed import DistributedError, join_world
    from ..engine.files import check_folder, replacing
    from ..profiling import profile_blocks, total

    if dtype not in _DTYPES:
        raise options.CommandError(f"dtype: expected {' or '.join(_DTYPES)}, got {dtype!r}")
    net = options.new_model(model, None, keyword)
    shape = (batch, net.in_chans, *(_parse(size) or net.pretrained_cfg["input_size"][1:]))
    with options.explained():
        check_folder(out)
    columns, errors = (BarColumn(), MofNCompleteColumn()), Console(stderr=True)
    try:
        with join_world(device) as world, Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task("")
            place = world.device
            rows = profile_blocks(
                net.to(place),
                torch.randn(shape, device=place),
                dtype=getattr(torch, dtype),
                train=train,
                rounds=rounds,
                advance=lambda done, passes: bar.update(task, completed=done, total=passes),
            )
    except (DistributedError, TypeError, ValueError) as error:
        raise options.CommandError(str(error)) from error
    on_gpu = place.type == "cuda"
    name = torch.cuda.get_device_name(place) if on_gpu else str(place)

    settings = {
        "model": model,
        "input": shape,
        "dtype": dtype,
        "pass": "forward and backward" if train else "forward",
        "rounds": rounds,
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    title = f"{model} {'×'.join(map(str, shape))}, {dtype}, {settings['pass']}, {name}"
    rows = [*rows, total(rows)]
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "profile.json") as path:
        path.write_text(json.dumps({**settings, "blocks": [*map(asdict, rows)]}, indent=2) + "\n")
    with replacing(out / "profile.png") as path:
        _draw(rows, title, path)
    console, table = Console(), _table(rows, title)
    # Columns that are cut would say nothing.
    console.width = max(console.width, Console(width=999).measure(table).maximum)
    console.print(table)
    console.print(
        f"Medians of {rounds} interleaved passes. Moved: what operators were given and returned, "
        f"whether or not from a cache. Launches: {'kernels' if on_gpu else 'operators called'}.",
        style="dim",
    )
    written = f"Written: {out / 'profile.png'}, {out / 'profile.json'}"
    console.print(written, markup=False, soft_wrap=True)


def _parse(size: str | None) -> tuple[int, ...] | None:
    if size is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,5}([x×][1-9]\d{0,5}){1,2}", size):
        raise options.CommandError(f"input: expected sizes like 16x224x224, got {size!r}")
    return tuple(map(int, re.split("[x×]", size)))


def _table(rows: list[Row], title: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("block", no_wrap=True)
    table.add_column("", no_wrap=True)
    for heading, unit, _ in _FIGURES.values():
        table.add_column(f"{heading}\neager {unit}", justify="right", no_wrap=True)
        table.add_column("\nkernels", justify="right", no_wrap=True)
        table.add_column("\n", justify="right", no_wrap=True, style="bold")
    for row in rows:
        if row is rows[-1]:
            table.add_section()
        table.add_row(row.name, row.kind, *(c for figure in _FIGURES for c in _cells(row, figure)))
    return table


def _cells(row: Row, figure: str) -> list[str]:
    costs, ratio = _in_units(row, figure), row.ratio(figure)
    digits = 0 if figure == "launches" else 2 if max(costs) < 100 else 1
    return [*(f"{cost:,.{digits}f}" for cost in costs), "" if ratio is None else f"{ratio:.2f}×"]


def _in_units(row: Row, figure: str) -> list[float]:
    return [getattr(cost, figure) / _FIGURES[figure][2] for cost in row.costs.values()]


def _draw(rows: list[Row], title: str, path: Path) -> None:
    """Bars of all rows but the sum, which is in the headings."""
    from matplotlib.figure import Figure

    *blocks, summed = rows
    height = 1.6 + 0.24 * len(blocks)
    figure = Figure(figsize=(13, height), dpi=130, facecolor="white", layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    panels: Any = figure.subplots(1, len(_FIGURES), sharey=True)
    for axes, name in zip(panels, _FIGURES, strict=True):
        _bars(axes, blocks, summed, name)
    panels[0].set_yticks(range(len(blocks)), [row.name for row in blocks])
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="upper right", ncols=2, frameon=False)
    figure.savefig(path, format="png")


def _bars(axes: Axes, blocks: list[Row], summed: Row, figure: str) -> None:
    heading, unit, _ = _FIGURES[figure]
    eager, kernels, *_ = _cells(summed, figure)
    axes.set_title(f"{heading}: {eager} → {kernels} {unit}", loc="left", size=10)
    widths = [_in_units(row, figure) for row in blocks]
    for number, path in enumerate(summed.costs):
        places = [index + 0.4 * number - 0.2 for index in range(len(blocks))]
        axes.barh(places, [w[number] for w in widths], 0.4, label=path, color=_COLOURS[path])
    axes.set_xlabel(unit)
    axes.margins(y=0.01)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
