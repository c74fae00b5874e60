"""Time rivals alternately in one process, so that drift of the machine meets all of them alike."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP = 3
"""Calls of each rival in front of the rounds."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MOST = 2**29  # bytes of buffers a rival is given at most
_MANY = 1024  # buffers: so small ones are a matter of microseconds a call, not of memory


@dataclass(frozen=True)
class Samples:
    """What was measured, one entry a round."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.values) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.values, n=4)
        return low, high

    @property
    def spread(self) -> float:
        """Distance of the quartiles, relative to the median."""
        low, high = self.quartiles
        return (high - low) / self.median

    def over(self, other: Samples) -> Samples:
        """The ratios of both, round by round: what slowed a round down slowed both of them."""
        return Samples([a / b for a, b in zip(self.values, other.values, strict=True)])


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
    repeats = {name: fill(call, sample) for name, call in rivals.items()}
    samples: dict[str, list[float]] = {name: [] for name in rivals}
    names = list(rivals)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for round_ in range(rounds):
            first = round_ % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(seconds(rivals[name], repeats[name]))
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return {name: Samples(s) for name, s in samples.items()}


def fill(call: Callable[[], Any], sample: float) -> int:
    """Warm up (the first call may compile), and see how many calls fill a sample."""
    call()
    least = min(seconds(call, 1) for _ in range(WARM_UP - 1))
    return max(1, round(sample / max(least, 1e-7)))


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Of one call, the mean of as many."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def keep_heap() -> None:
    """Let this process keep what it frees, up to 1 GiB, and take blocks of up to 32 MiB from that.

    Else glibc gives memory back and fetches it again as chance arranges its heap, and a call that
    needs much pays the system for new pages in one process and not in the next.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**30)
        mallopt(_M_MMAP_THRESHOLD, 2**25)


def rotating(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """A call that is the next of these each time: on buffers that the last ones did not touch."""
    following = itertools.cycle(calls)
    return lambda: next(following)()


def copies(bytes_: int) -> int:
    """How many buffers of a size do not fit the last cache together, twice over; a thousand do."""
    wanted = -(-min(2 * last_cache(), _MOST) // max(bytes_, 1))
    return min(max(2, wanted), _MANY)


def last_cache() -> int:
    """Bytes of the processor's largest cache, 64 MiB where the system does not tell."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    found = [int(size.read_text().strip().removesuffix("K")) * 1024 for size in sizes]
    return max(found, default=2**26)
