"""Two runs' ratios held against each other."""

from __future__ import annotations

from typing import Any

from benchmarks.twice import pairs, summary


def row(rival: str, ratio: float | None, case: str = "small") -> dict[str, Any]:
    names = {"operator": "linear", "case": case, "dtype": "float32", "pass": "forward"}
    return {**names, "rival": rival, "ratio": ratio}


def test_rivals_are_paired_by_their_names() -> None:
    first = [row("ours", 1.0), row("reference", 2.0), row("gone", 3.0), row("refused", None)]
    second = [row("refused", 2.0), row("reference", 1.9), row("ours", 1.0)]
    (pair,) = pairs(first, second)
    assert (pair.first, pair.second) == (2.0, 1.9)
    assert round(pair.apart, 4) == 0.0526
    assert pair.label == "linear, small, float32, forward, reference"


def test_what_is_further_apart_is_listed() -> None:
    first = [row("a", 1.0), row("b", 1.0), row("c", 1.0)]
    second = [row("a", 1.04), row("b", 2.0), row("c", 0.9)]
    head, *far = summary(list(pairs(first, second))).splitlines()
    assert head == (
        "1 of 3 ratios agree within 5%; the median difference is 11.1%, the largest 100.0%"
    )
    assert [line.split()[-1] for line in far] == ["b", "c"]
