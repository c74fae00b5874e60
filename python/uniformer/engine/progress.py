"""Where a run is, and how fast it goes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from .loading import Watched


@dataclass
class Progress:
    """Where a run is: all that a checkpoint has to tell besides what steps change."""

    epoch: int = 0  # that is being trained, from 0
    step: int = 0  # steps of it that are done
    best: float = -math.inf  # top-1 of the validation
    finished: bool = False
    seconds: float = 0.0  # of training, over all interruptions
    losses: list[float] = field(default_factory=list)  # of steps that are not in the log yet
    epoch_loss: float = 0.0  # sum over the steps of the epoch that are
    epoch_steps: int = 0  # and their number
    broken: list[str] = field(default_factory=list)  # paths of videos
    log_size: int = 0  # bytes of the log that go with all this

    def mean_loss(self) -> float | None:
        """Over the epoch's steps; None if videos were broken in all of them."""
        return self.epoch_loss / self.epoch_steps if self.epoch_steps else None

    def next_epoch(self) -> None:
        """Start another epoch."""
        self.epoch += 1
        self.step = self.epoch_steps = 0
        self.epoch_loss = 0.0


class Clock:
    """Seconds since it was made, and ``before``."""

    def __init__(self, before: float = 0.0) -> None:
        self._zero = time.perf_counter() - before

    def seconds(self) -> float:
        """The time now."""
        return time.perf_counter() - self._zero


class Pace:
    """Throughput since it was made, of steps that take their batches from ``batches``.

    ``clips`` is for whoever takes the steps to add to.
    """

    def __init__(self, batches: Watched) -> None:
        self.clips = 0
        self._batches, self._waited, self._clock = batches, batches.waited, Clock()

    def figures(self) -> dict[str, float]:
        """Clips a second, and the share of the time that was spent waiting for them."""
        seconds = self._clock.seconds()
        waited = self._batches.waited - self._waited
        return {"clips_per_second": self.clips / seconds, "waiting": waited / seconds}
