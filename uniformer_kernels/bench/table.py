"""The figures as a table, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .case import OURS
from .ceilings import Ceilings
from .measure import Row

_COLUMNS = ("time", "± quartiles", "ratio", "GB/s", "GFLOP/s", "of ceiling")


def show(console: Console, rows: Sequence[Row]) -> None:
    """A table an operator; ``ratio`` is how many times longer than ours."""
    for operator, its_rows in groupby(rows, lambda row: row.operator):
        table = Table(title=operator, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
        table.add_column("", no_wrap=True)
        for column in _COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        for (case, dtype, pass_), group in groupby(
            its_rows, lambda row: (row.case, row.dtype, row.pass_)
        ):
            table.add_row(f"{case}, {dtype}, {pass_}", style="bold")
            for row in group:
                table.add_row(f"  {label(row)}", *cells(row), style=_style(row))
        console.print(table)


def console() -> Console:
    """As wide as the table where nothing is as wide as a terminal: in a file."""
    found = Console()
    return found if found.is_terminal else Console(width=132)


def label(row: Row) -> str:
    name = f"{row.rival} ({row.backend})" if row.rival == OURS else row.rival
    return f"{name}: refused: {row.refused}" if row.refused else name


def cells(row: Row) -> list[str]:
    if row.seconds is None or row.quartiles is None:
        return []
    low, high = row.quartiles
    spread = (high - low) / row.seconds / 2
    return [
        duration(row.seconds),
        f"{spread:.1%}",
        "" if row.ratio is None else f"{row.ratio:.2f}×",
        f"{row.gb_per_s:.1f}",
        f"{row.gflop_per_s:.1f}",
        f"{row.ceiling:.0%} {row.bound}",
    ]


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def _style(row: Row) -> str:
    if row.refused:
        return "yellow"
    return "" if row.rival == OURS else "dim"


def conditions(machine: dict[str, Any], ceilings: Ceilings) -> str:
    """What stands under the table."""
    matmul = ", ".join(f"matmul {n} {rate / 1e9:.0f}" for n, rate in ceilings.matmul.items())
    return (
        f"{machine['date']}, {machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, "
        f"PyTorch {machine['torch']}, Python {machine['python']}, commit {machine['commit']}: "
        f"{machine['command']}\nceilings: copy {ceilings.copy / 1e9:.1f} GB/s; fma "
        f"{ceilings.fma / 1e9:.0f}, {matmul} GFLOP/s"
    )


def write(
    path: Path, machine: dict[str, Any], ceilings: Ceilings, rows: Iterable[Row], **more: Any
) -> None:
    """Everything that was measured, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine, "ceilings": ceilings.json(), **more}
    text = json.dumps(found | {"rows": [row.json() for row in rows]}, indent=1)
    path.write_text(text + "\n")
