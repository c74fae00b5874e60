"""The demo's figures as a table and as a chart."""

from __future__ import annotations

import os
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .measure import PATHS

NAMES = {"plain": "plain PyTorch", "kernels": "uniformer kernels"}
COLOURS = {"plain": "#b8bec8", "kernels": "#2f6fed"}
INK, FAINT = "#1f2430", "#6b7280"


def show(figures: dict[str, Any], console: Console) -> None:
    """Print the table and what is to be said about it."""
    forward, training, settings = figures["forward"], figures["training"], figures["settings"]
    table = Table(
        title=f"{_name(settings)}, {settings['clips']} clips of {settings['size']}²",
        caption=f"float32, {_threads(figures)}; medians of {settings['rounds']} (training: "
        f"{settings['training_rounds']}) interleaved rounds; memory above that of the idle process",
    )
    table.add_column()
    for path in PATHS:
        table.add_column(NAMES[path], justify="right")
    table.add_column("ratio", justify="right", style="bold")
    for rank, pair in enumerate(zip(*(forward["top5"][path] for path in PATHS), strict=True)):
        cells = (f"class {index} ({score:.4g})" for index, score in pair)
        table.add_row(f"top {rank + 1} (summed logits)", *cells)
    table.add_section()
    _rows(table, "clip", forward)
    table.add_section()
    _rows(table, "training step", training)
    table.add_row("loss", *(f"{training['loss'][path]:.6f}" for path in PATHS))
    console.print(table)
    console.print(
        f"Difference, relative: logits {forward['difference']:.1e} at most, "
        f"loss {training['loss_difference']:.1e}, "
        f"gradient {training['gradient_difference']:.1e} (L2)."
    )
    console.print(
        "A training step is forward, cross-entropy and backward on two clips, no optimiser."
    )
    if figures["weights"].startswith("random"):
        console.print(
            f"The weights are {figures['weights']}: the classes mean nothing here, only the "
            "agreement and the times do. Give a checkpoint for real classes.",
            style="yellow",
        )
    console.print(figures["backends"], style="dim")


def _name(settings: dict[str, Any]) -> str:
    return f"{settings['model']} {settings['frames']}x{settings['stride']}"


def _threads(figures: dict[str, Any]) -> str:
    threads = figures["machine"]["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _rows(table: Table, job: str, figures: dict[str, Any]) -> None:
    seconds, memory = figures["seconds"], figures["peak_mib"]
    times = (f"{seconds[path] * 1e3:,.0f} ms" for path in PATHS)
    table.add_row(f"time per {job}", *times, f"{figures['speedup']:.2f}x")
    peaks = (f"{memory[path]:,.0f} MiB" for path in PATHS)
    table.add_row(f"peak memory, {job}", *peaks, f"{figures['memory_ratio']:.2f}x")


def draw(figures: dict[str, Any], frames: Tensor, path: str | os.PathLike) -> None:
    """Draw the chart: frames of one clip, below them times and memory of both paths.

    Args:
        figures: what the demo returns.
        frames: uint8 ``[T, H, W, 3]``, eight of which are shown.
        path: the PNG file to write.
    """
    forward, training, settings = figures["forward"], figures["training"], figures["settings"]
    figure = Figure(figsize=(11, 6.2), dpi=150, facecolor="white")
    machine = figures["machine"]
    title = f"{_name(settings)}: one video, two paths"
    facts = (
        f"{machine['processor']}, {_threads(figures)}, "
        f"torch {figures['versions']['torch']}, float32, {figures['date'][:10]}; "
        f"logits agree to {forward['difference']:.0e}, "
        f"gradients to {training['gradient_difference']:.0e}"
    )
    figure.text(0.04, 0.935, title, size=16, weight="bold", color=INK)
    figure.text(0.04, 0.893, facts, size=9.5, color=FAINT)
    grid = {"left": 0.04, "right": 0.96}
    shown = frames[:: max(len(frames) // 8, 1)][:8]
    strip = figure.add_gridspec(1, len(shown), top=0.86, bottom=0.64, wspace=0.04, **grid)
    for column, frame in enumerate(shown):
        axes = figure.add_subplot(strip[column])
        axes.imshow(frame.numpy())
        axes.set_axis_off()
    bars = figure.add_gridspec(1, 4, top=0.5, bottom=0.08, wspace=0.3, **grid)
    panels = (
        ("Time per clip", forward["seconds"], 1e3, "ms", ("faster", "slower")),
        ("Time per training step", training["seconds"], 1e3, "ms", ("faster", "slower")),
        ("Peak memory, clip", forward["peak_mib"], 1, "MiB", ("less", "more")),
        ("Peak memory, training step", training["peak_mib"], 1, "MiB", ("less", "more")),
    )
    for column, (title, values, scale, unit, words) in enumerate(panels):
        heights = [values[path] * scale for path in PATHS]
        _bars(figure.add_subplot(bars[column]), title, heights, unit, words)
    figure.savefig(path)


def _bars(axes: Axes, title: str, heights: list[float], unit: str, words: tuple[str, str]) -> None:
    names = [NAMES[path].replace(" ", "\n") for path in PATHS]
    ratio = heights[0] / max(heights[1], 1e-9)
    verdict = (
        f"{ratio:.1f}x {words[0]}" if ratio >= 1 else f"{1 / max(ratio, 1e-9):.1f}x {words[1]}"
    )
    bars = axes.bar(names, heights, color=[COLOURS[path] for path in PATHS], width=0.62)
    axes.bar_label(bars, [f"{height:,.0f} {unit}" for height in heights], padding=3, color=INK)
    axes.set_title(title, size=10.5, color=FAINT, loc="left", pad=26)
    axes.text(0, 1.05, verdict, transform=axes.transAxes, size=14, weight="bold", color=INK)
    axes.set_ylim(0, max(heights) * 1.15)
    axes.set_yticks([])
    axes.tick_params(length=0, labelcolor=INK, labelsize=9.5)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["plain"])
