"""Measure the figures this library promises: `python -m benchmarks.report`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from uniformer_kernels.bench.machine import machine
from uniformer_kernels.bench.timing import Samples

from .agreement import OURS
from .measurements import Measurement, measurements

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def rows(measurement: Measurement, samples: dict[str, Samples]) -> list[dict[str, Any]]:
    """The table's rows from one measurement."""
    medians = {name: s.median * measurement.scale for name, s in samples.items()}
    found = []
    for target in measurement.targets:
        ours = medians[target.ours]
        best = min(target.rivals, key=medians.get)
        ratio = measurement.ratio(ours, medians[best])
        found.append(
            {
                "what": measurement.name + ("" if target.ours == OURS else f", {target.ours}"),
                "against": target.against,
                "best": best,
                "unit": measurement.unit,
                "ours": ours,
                "theirs": medians[best],
                "spread": max(samples[target.ours].spread, samples[best].spread),
                "ratio": ratio,
                "bound": measurement.bound,
                "reach": target.reach,
                "aim": target.aim,
                "reached": measurement.reached(ratio, target.reach),
                "medians": medians,
            }
        )
    return found


COLUMNS = ("", "against", "theirs", "ours", "ratio", "reach", "aim")


def cells(row: dict[str, Any]) -> list[str]:
    against = row["against"]
    if against == "best of PyTorch":
        against += f" ({row['best']})"
    return [
        row["what"],
        against,
        f"{row['theirs']:.2f} {row['unit']}",
        f"{row['ours']:.2f} {row['unit']}",
        f"{row['ratio']:.2f}×",
        *(f"{row['bound']}{goal:g}×" if goal else "" for goal in (row["reach"], row["aim"])),
    ]


def show(console: Console, found: list[dict[str, Any]]) -> None:
    table = Table(*COLUMNS)
    for row in found:
        table.add_row(*cells(row), style="green" if row["reached"] else "red")
    console.print(table)


def markdown(found: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """The table with the conditions under it."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += [f"| {' | '.join(cells(row))} |" for row in found]
    spread = max((row["spread"] for row in found), default=0.0)
    lines += [
        "",
        f"{where['date']}, {where['cpu']}, {where['threads']} threads, PyTorch {where['torch']}, "
        f"Python {where['python']}, commit {where['commit']}: `{where['command']}`. Medians of "
        f"interleaved rounds in one process; quartiles at most {spread:.0%} apart.",
    ]
    return "\n".join(lines)


def write_document(text: str, path: Path = DOCUMENT) -> None:
    """Put `text` between the document's markers."""
    document = path.read_text()
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path}: expected the lines {BEGIN} and {END}")
    path.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="what has this in its name")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each rival")
    parser.add_argument("--sample", type=float, default=0.05, help="seconds of a timing at least")
    parser.add_argument("--threads", type=int, help="PyTorch's threads")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every median here")
    parser.add_argument("--write-docs", action="store_true", help=f"into {DOCUMENT.name}")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    console = Console(stderr=True)
    found: list[dict[str, Any]] = []
    for measurement in measurements():
        if options.only not in measurement.name:
            continue
        with console.status(measurement.name):
            samples = measurement.take(options.rounds, options.sample)
        found += rows(measurement, samples)
    if not found:
        parser.error(f"--only: nothing has {options.only!r} in its name")

    show(Console(), found)
    where = machine(shlex.join(["python", "-m", "benchmarks.report", *sys.argv[1:]]))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": where, "rows": found}, indent=2) + "\n")
    if options.write_docs:
        write_document(markdown(found, where))


if __name__ == "__main__":
    main()
