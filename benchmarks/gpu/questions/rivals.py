"""What the comparisons share: their size, and who of two rivals is the faster one."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]

BATCH, ROUNDS = 16, 5


def _ratios(rows: Rows, theirs: str, ours: str) -> list[float]:
    pairs = ((found["median_us"].get(theirs), found["median_us"].get(ours)) for found in rows)
    return [a / b for a, b in pairs if a and b]


def faster(rows: Rows, theirs: str, ours: str) -> str:
    ratios = _ratios(rows, theirs, ours)
    if not ratios:
        return f"{theirs} or {ours} did not run"
    served = sum(ratio > 1 for ratio in ratios)
    span = f"{min(ratios):.2f} to {max(ratios):.2f}×"
    return f"{ours} is {span} as fast as {theirs}: it serves {served} of {len(ratios)} cases"
