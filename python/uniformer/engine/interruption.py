"""SIGTERM and SIGINT as something a loop asks about."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Interrupted(Exception):  # noqa: N818  (no error)
    """A run was asked to end by a signal, and has saved what it had.

    Args:
        signum: the signal's number; a process that ends by it exits with 128 more.
        message: where the run stands.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(signum, message)
        self.signum, self.message = signum, message

    def __str__(self) -> str:
        return self.message


class Interruption:
    """While entered, SIGTERM and SIGINT only set ``signum``, which is 0 before."""

    def __init__(self) -> None:
        self.signum = 0

    def __enter__(self) -> Interruption:
        handled = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in handled}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum


def leave_signals_to_parent(worker: int = 0) -> None:
    """For a loader's workers: a signal to all processes of a job must not end them first."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
