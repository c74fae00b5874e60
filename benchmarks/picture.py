"""The README's picture of what `benchmarks.report` measured: ``python -m benchmarks.picture``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
PICTURE = RESULTS.parent.parent / "docs" / "performance.png"
COLOURS = ("#2f6fed", "#e8871e", "#3a9d5d")


def _bars(results: list[dict[str, Any]]) -> Figure:
    """A group of bars for every row of the table, one for each machine that measured it."""
    ratios = [
        {(row["what"], row["against"]): row["ratio"] for row in found["rows"] if _is_time(row)}
        for found in results
    ]
    rows = list(dict.fromkeys(row for found in ratios for row in found))
    figure = Figure(figsize=(11, 0.42 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(results)
    for index, (result, found) in enumerate(zip(results, ratios, strict=True)):
        machine = result["machine"]
        label = f"{machine['cpu']}, {machine['threads']} threads, {machine['date']}"
        places = [y + (index + 0.5) * height - 0.4 for y, row in enumerate(rows) if row in found]
        lengths = [found[row] for row in rows if row in found]
        beyond = [length - 1 for length in lengths]
        bars = axes.barh(places, beyond, 0.9 * height, left=1, color=COLOURS[index], label=label)
        axes.bar_label(bars, [f"{length:.1f}×" for length in lengths], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{what}\nagainst {against}" for what, against in rows])
    axes.tick_params(axis="y", labelsize=7, length=0)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.set_xlabel("times faster than the best of PyTorch named in each row")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _is_time(row: dict[str, Any]) -> bool:
    return row.get("unit", "ms") == "ms" and not str(row.get("bound", "")).startswith("≤")


if __name__ == "__main__":
    _bars([json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]).savefig(
        PICTURE, dpi=110
    )
