"""Measure the figures this library promises: `python -m benchmarks.report`."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from rich.console import Console
from rich.table import Table

import uniformer_kernels

from .cases import OURS
from .measurements import Measurement, measurements
from .timing import Samples

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def rows(measurement: Measurement, samples: dict[str, Samples]) -> list[dict[str, Any]]:
    """The table's rows from one measurement."""
    medians = {name: s.median * measurement.scale for name, s in samples.items()}
    ours = medians[OURS]
    found = []
    for target in measurement.targets:
        best = min(target.rivals, key=medians.get)
        ratio = measurement.ratio(ours, medians[best])
        found.append(
            {
                "what": measurement.name,
                "against": target.against,
                "best": best,
                "unit": measurement.unit,
                "ours": ours,
                "theirs": medians[best],
                "spread": max(samples[OURS].spread, samples[best].spread),
                "ratio": ratio,
                "bound": measurement.bound,
                "reach": target.reach,
                "aim": target.aim,
                "reached": measurement.reached(ratio, target.reach),
                "medians": medians,
            }
        )
    return found


def machine() -> dict[str, Any]:
    """Where and with what the figures were measured."""
    git = partial(subprocess.run, cwd=DOCUMENT.parent, capture_output=True, text=True, check=False)
    commit = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip() or "uncommitted"
    changed = bool(git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "uniformer_kernels": uniformer_kernels.__version__,
        "commit": commit + ("+changes" if changed else ""),
        "command": shlex.join(["python", "-m", "benchmarks.report", *sys.argv[1:]]),
    }


def _cpu() -> str:
    """The processor's name and extensions that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    info = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    name = info.get("model name", platform.machine())
    if "cpu family" in info:
        name += f" (family {info['cpu family']}, model {info['model']})"
    widest = next((e for e in ("avx512f", "avx2") if e in info.get("flags", "").split()), "")
    return f"{name}, {widest}" if widest else name


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
    where = machine()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": where, "rows": found}, indent=2) + "\n")
    if options.write_docs:
        write_document(markdown(found, where))


if __name__ == "__main__":
    main()
