"""The GPU half of `docs/performance.md`: what is to be reached, and what was measured of it.

`python -m benchmarks.gpu.document RESULT.json` writes it again from a result file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from ..gpu_experiments import answers
from ..report import DOCUMENT

BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
_BEST = "the best rival"


@dataclass(frozen=True)
class Target:
    """A ratio to reach in the row `what`, against one rival or the best of them."""

    what: str
    reach: float
    aim: float
    against: str = _BEST

    def ratio(self, row: dict[str, Any]) -> float | None:
        if self.against == _BEST:
            return row.get("ratio")
        ours, theirs = (row["median_us"].get(name) for name in ("ours", self.against))
        return theirs / ours if ours and theirs else None


_OFFICIAL, _COMPILED = "official eager", "compiled, SDPA + channels-last"
TARGETS = [
    Target("depthwise k5 8×56×56×64 bf16, forward", 5, 10),
    Target("depthwise k5 8×56×56×64 bf16, forward + gradients", 6, 15),
    Target("depthwise k3 8×56×56×64 bf16, forward", 3, 5),
    Target("attention 1568 × 5 × 64, batch 16 bf16, forward + gradients", 0.9, 1.1),
    Target("attention 801 × 8 × 28, batch 16 bf16, forward + gradients", 1.5, 2.5),
    Target("UniFormer-S 16×224 inference, batch 16 bf16, from Python", 4, 6, _OFFICIAL),
    Target("UniFormer-S 16×224 inference, batch 16 bf16, from Python", 1.3, 1.5, _COMPILED),
    Target("UniFormer-S 16×224 training step, batch 16 bf16", 4, 6, _OFFICIAL),
    Target("UniFormer-S 16×224 training step, batch 16 bf16", 1.5, 2, _COMPILED),
    Target("UniFormer-XXS 16×160 inference, batch 1 bf16, from Python", 4, 8, _OFFICIAL),
]
_SAVED = (
    "UniFormer-S training, activations saved",
    "UniFormer-S 16×224 training step, batch 16 bf16",
)


def table(found: dict[str, Any] | None) -> list[list[str]]:
    """A row a target: what, against whom, ratio, reach, aim."""
    measured = {row["what"]: row for row in rows(found) if "experiment" not in row}
    lines = []
    for target in TARGETS:
        row = measured.get(target.what)
        ratio = target.ratio(row) if row else None
        against = target.against
        if row and against == _BEST and "best" in row:
            against += f" ({row['best']})"
        shown = "not measured" if ratio is None else f"{ratio:.2f}×"
        lines.append([target.what, against, shown, f"{target.reach:g}×", f"{target.aim:g}×"])
    saved = measured.get(_SAVED[1], {}).get("saved_bytes", {})
    ours, theirs = (saved.get(name) for name in ("ours", _OFFICIAL))
    part = f"{ours / theirs:.2f}×" if ours and theirs else "not measured"
    lines.append([_SAVED[0], _OFFICIAL, part, "≤ 0.5×", "≤ 0.2×"])
    return lines


def rows(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    stages = found["stages"].values() if found else ()
    return [row for stage in stages for row in stage.get("rows", [])]


def markdown(found: dict[str, Any] | None) -> str:
    lines = ["|  | against | ratio | reach | aim |", "|---|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(cells)} |" for cells in table(found)]
    lines += ["", "| Question | What the figures say |", "|---|---|"]
    lines += [f"| {number}. {what} | {answer} |" for number, what, answer in answers(rows(found))]
    if found:
        where = found["machine"]
        lines += [
            "",
            f"{where['date']}, {where['gpu']} ({where['gpu_memory']}, driver {where['driver']}), "
            f"PyTorch {where['torch']}, Python {where['python']}, commit {where['commit']}: "
            "`make gpu`. Medians of interleaved rounds.",
        ]
    return "\n".join(lines)


def refresh(found: dict[str, Any] | None) -> None:
    """Put the table between the document's markers; with nothing measured it says so."""
    head, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{DOCUMENT}: expected the lines {BEGIN} and {END}")
    DOCUMENT.write_text(f"{head}{BEGIN}\n\n{markdown(found)}\n\n{END}{tail}")


def show(found: dict[str, Any]) -> None:
    """The measured rows, briefly."""
    for row in rows(found):
        medians = "  ".join(f"{k} {v:.1f}" for k, v in row.get("median_us", {}).items())
        ratio = f"{row['ratio']:5.2f}×" if "ratio" in row else "      "
        failed = "  ".join(f"{k}: {v}" for k, v in row.get("failed", {}).items())
        counts = {k: v for k, v in row.items() if k.endswith("kernels")} or ""
        print(f"{ratio} {row['what']}: {medians} {failed} {counts}")


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        refresh(json.load(file))
