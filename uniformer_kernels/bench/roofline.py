"""A roofline: every kernel between the machine's ceilings, by operations a byte."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .case import OURS
from .ceilings import Ceilings
from .measure import BACKWARD, Row
from .table import conditions

_MARKERS = "osD^v<>PXph*d8Hx"


def plot(path: Path, rows: Sequence[Row], ceilings: Ceilings, machine: dict[str, Any]) -> None:
    """Draw our rows: filled forward, hollow with gradients."""
    from matplotlib.figure import Figure

    points = [row for row in rows if row.rival == OURS and row.seconds]
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots()
    intensities = [row.flop / row.bytes for row in points] or [1.0]
    left, right = min(intensities) / 2, max([*intensities, 100]) * 2
    roofs = {"fma": ceilings.fma} | {f"matmul {n}": r for n, r in ceilings.matmul.items()}
    for number, (name, rate) in enumerate(roofs.items()):
        ridge = rate / ceilings.copy
        xs = [min(left, ridge), ridge, max(right, ridge)]
        ys = [x * ceilings.copy / 1e9 for x in xs[:2]] + [rate / 1e9]
        axes.plot(xs, ys, color="0.3", lw=1, ls=("-", "--", "-.", ":")[number % 4])
        axes.annotate(f"{name} {rate / 1e9:.0f} GFLOP/s", (xs[2], ys[2]), ha="right", va="bottom")
    axes.annotate(
        f"copy {ceilings.copy / 1e9:.1f} GB/s", (left, left * ceilings.copy / 1e9), va="bottom"
    )
    operators = list(dict.fromkeys(row.operator for row in points))
    dtypes = list(dict.fromkeys(row.dtype for row in points))
    for row in points:
        color = f"C{dtypes.index(row.dtype)}"
        axes.plot(
            row.flop / row.bytes,
            row.gflop_per_s or 0.0,
            _MARKERS[operators.index(row.operator) % len(_MARKERS)],
            color=color,
            mfc="none" if row.pass_ == BACKWARD else color,
        )
    for number, operator in enumerate(operators):
        axes.plot([], [], _MARKERS[number % len(_MARKERS)], color="0.4", label=operator)
    for number, dtype in enumerate(dtypes):
        axes.plot([], [], "s", color=f"C{number}", label=dtype)
    axes.plot([], [], "o", color="0.4", mfc="none", label="with gradients")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations a byte that has to move",
        ylabel="GFLOP/s",
    )
    lines = conditions(machine, ceilings).splitlines()
    axes.set_title("\n".join(textwrap.fill(line, 150) for line in lines), fontsize=7)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
