"""Time rivals alternately in one process, so that drift of the machine meets all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Samples:
    """What was measured, one entry a round."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Distance of the quartiles, relative to the median."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4)
        return (high - low) / self.median


def compare(
    rivals: Mapping[str, Callable[[], Any]], *, rounds: int = 15, sample: float = 0.05
) -> dict[str, Samples]:
    """Time every rival once a round, the rounds beginning with another rival each.

    Args:
        rivals: what to call, by name.
        rounds: timings of each.
        sample: seconds a timing should last at least; short calls are repeated to fill it.

    Returns:
        Seconds a call, by name.
    """
    repeats = {name: _repeats(call, sample) for name, call in rivals.items()}
    samples: dict[str, list[float]] = {name: [] for name in rivals}
    names = list(rivals)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for round_ in range(rounds):
            first = round_ % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(_time(rivals[name], repeats[name]))
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return {name: Samples(s) for name, s in samples.items()}


def _repeats(call: Callable[[], Any], sample: float) -> int:
    """Warm up (the first call may compile), and see how many calls fill a sample."""
    call()
    seconds = min(_time(call, 1) for _ in range(2))
    return max(1, round(sample / max(seconds, 1e-7)))


def _time(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
