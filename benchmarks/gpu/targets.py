"""What is to be reached on a GPU, and how it is read off the measured rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .ceilings import MULTIPLY_ADDS
from .rows import OURS

Rows = Mapping[str, Mapping[str, Any]]
"""Measured rows by name; one that was not measured is empty."""

_BEST = "the best rival"
_OFFICIAL, _COMPILED = "official eager", "compiled, SDPA + channels-last"


@dataclass(frozen=True)
class Target:
    """A figure of the row `what`.

    Args:
        what: the row's name.
        against: whom, or what bound.
        reach: what the figure is to be at least.
        aim: what it may become, if that was said.
        figure: read off the rows, None where they lack it.
        unit: behind the figure.
        at_most: the figure is to be no larger than these.
    """

    what: str
    against: str
    reach: float
    aim: float | None
    figure: Callable[[Target, Rows], float | None]
    unit: str = "×"
    at_most: bool = False

    def cells(self, rows: Rows) -> list[str]:
        """What, against whom, figure, reach, aim."""
        against, best = self.against, rows[self.what].get("best")
        if against == _BEST and best:
            against += f" ({best})"
        found = self.figure(self, rows)
        sign = "≤ " if self.at_most else ""
        return [
            self.what,
            against,
            "not measured" if found is None else f"{found:.2f}{self.unit}",
            *("" if n is None else f"{sign}{n:g}{self.unit}" for n in (self.reach, self.aim)),
        ]


def median(rows: Rows, what: str, name: str = OURS) -> float | None:
    """Microseconds."""
    return rows[what].get("median_us", {}).get(name)


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _faster(what: str, reach: float, aim: float, against: str = _BEST) -> Target:
    """How many times as fast as a rival."""

    def figure(target: Target, rows: Rows) -> float | None:
        if against == _BEST:
            return rows[what].get("ratio")
        return _over(median(rows, what, against), median(rows, what))

    return Target(what, against, reach, aim, figure)


def _share(what: str, rate: str, ceiling: str, reach: float, aim: float) -> Target:
    """The part of a ceiling, measured in the same run, in percent."""

    def figure(target: Target, rows: Rows) -> float | None:
        part = _over(rows[what].get(rate), rows[ceiling].get(rate))
        return part and 100 * part

    return Target(what, ceiling, reach, aim, figure, unit=" %")


def _floor(what: str, samples: int, floor: float, reach: float, aim: float) -> Target:
    """How many times what the chip needs at least, `floor` microseconds a sample on an H200."""

    def figure(target: Target, rows: Rows) -> float | None:
        return _over(median(rows, what), samples * floor)

    against = f"{floor:g} µs a clip, an H200's floor"
    return Target(what, against, reach, aim, figure, at_most=True)


def _times(what: str, other: str, reach: float) -> Target:
    """How many times what our kernels take in another row."""

    def figure(target: Target, rows: Rows) -> float | None:
        return _over(median(rows, what), median(rows, other))

    return Target(what, other, reach, None, figure, at_most=True)


def _each(what: str, samples: int, reach: float) -> Target:
    """Microseconds a sample."""

    def figure(target: Target, rows: Rows) -> float | None:
        return _over(median(rows, what), samples)

    return Target(what, "a sample", reach, None, figure, unit=" µs", at_most=True)


def _saved(what: str, reach: float, aim: float) -> Target:
    """Activations kept for the backward pass, as a part of the official code's."""

    def figure(target: Target, rows: Rows) -> float | None:
        saved = rows[what].get("saved_bytes", {})
        return _over(saved.get(OURS), saved.get(_OFFICIAL))

    against = f"activations saved by {_OFFICIAL}"
    return Target(what, against, reach, aim, figure, at_most=True)


_K5, _K3 = ("depthwise k5 8×56×56×64 bf16, {}", "depthwise k3 8×56×56×64 bf16, {}")
_FORWARD, _BOTH = "forward", "forward + gradients"
_SMALL, _LIGHT = "UniFormer-S 16×224", "UniFormer-XXS 16×160"
_PYTHON, _GRAPH = "batch {} bf16, from Python", "batch {} bf16, as a graph"
_STEP = f"{_SMALL} training step, batch 32 bf16"

TARGETS = [
    _faster(_K5.format(_FORWARD), 5, 10),
    _faster(_K5.format(_BOTH), 6, 15),
    _faster(_K3.format(_FORWARD), 3, 5),
    _share(_K5.format(_FORWARD), "flop_per_s", MULTIPLY_ADDS, 60, 70),
    _share(_K3.format(_FORWARD), "bytes_per_s", "copy", 65, 80),
    _times(_K5.format(_BOTH), _K5.format(_FORWARD), 3.5),
    _each("token_shrink 800×224 bf16, batch 16", 16, 6),
    _faster(f"attention 1568 × 5 × 64, batch 16 bf16, {_BOTH}", 0.9, 1.1),
    _faster(f"attention 801 × 8 × 28, batch 16 bf16, {_BOTH}", 1.5, 2.5),
    _faster(f"{_SMALL} inference, {_PYTHON.format(16)}", 4, 6, _OFFICIAL),
    _faster(f"{_SMALL} inference, {_PYTHON.format(16)}", 1.3, 1.5, _COMPILED),
    _floor(f"{_SMALL} inference, {_GRAPH.format(32)}", 32, 141, 1.7, 1.3),
    _faster(_STEP, 4, 6, _OFFICIAL),
    _faster(_STEP, 1.5, 2, _COMPILED),
    _floor(_STEP, 32, 539, 1.7, 1.3),
    _saved(_STEP, 0.5, 0.2),
    _faster(f"{_LIGHT} inference, {_PYTHON.format(1)}", 4, 8, _OFFICIAL),
]

HEADLINES = {
    _K5.format(_BOTH),
    f"{_SMALL} inference, {_PYTHON.format(16)}",
    _STEP,
    f"{_LIGHT} inference, {_PYTHON.format(1)}",
}
"""What the README shows."""
