"""Whether two runs on one machine find the same: ``python -m benchmarks.twice [OP] [OPTIONS]``.

Runs ``python -m uniformer_kernels.bench --compare`` with these arguments two times, every operator
without one, and holds the ratios of all rivals against each other.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniformer_kernels.bench.case import OURS

ALLOWED = 0.05


@dataclass(frozen=True)
class Pair:
    """A rival's ratio in both runs."""

    label: str
    first: float
    second: float

    @property
    def apart(self) -> float:
        """By how much the larger one exceeds the smaller one."""
        low, high = sorted((self.first, self.second))
        return high / low - 1

    def __str__(self) -> str:
        return f"{self.apart:7.1%}  {self.first:7.2f}×  {self.second:7.2f}×  {self.label}"


def pairs(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> Iterator[Pair]:
    """The rivals that both runs have a ratio of, ours left out, which is 1."""
    named = {_label(row): row for row in second}
    for row in first:
        other = named.get(_label(row))
        if row["rival"] != OURS and row["ratio"] and other and other["ratio"]:
            yield Pair(_label(row), row["ratio"], other["ratio"])


def summary(found: Sequence[Pair]) -> str:
    """How many agree; then those that do not, the furthest apart first."""
    far = sorted((p for p in found if p.apart > ALLOWED), key=lambda p: -p.apart)
    middle = statistics.median(p.apart for p in found)
    head = (
        f"{len(found) - len(far)} of {len(found)} ratios agree within {ALLOWED:.0%}; the median "
        f"difference is {middle:.1%}, the largest {max(p.apart for p in found):.1%}"
    )
    return "\n".join([head, *map(str, far)])


def _label(row: dict[str, Any]) -> str:
    return ", ".join(row[key] for key in ("operator", "case", "dtype", "pass", "rival"))


def main(typed: Sequence[str]) -> int:
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        command = [sys.executable, "-m", "uniformer_kernels.bench", *typed, "--compare"]
        for _ in range(2):
            subprocess.run([*command, "--json", str(path)], check=True)
            runs.append(json.loads(path.read_text()))
    found = list(pairs(*(run["rows"] for run in runs)))
    machine = runs[0]["machine"]
    print(summary(found))
    print(
        f"{machine['date']}, {machine['cpu']}, {machine['threads']} threads, PyTorch "
        f"{machine['torch']}, commit {machine['commit']}: python -m benchmarks.twice "
        + " ".join(typed)
    )
    return any(pair.apart > ALLOWED for pair in found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
