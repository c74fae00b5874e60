"""What a run tells: a file of records, TensorBoard, a bar at the terminal."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RecordFile:
    """A file of JSON records, one a line, each on its way to the disk when it is written.

    Args:
        path: the file; continued if it is there.
        size: bytes of it that are true: what came later is cut off, and done again.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self._file = path.open("ab")
        if size is not None and size < self._file.tell():
            self._file.truncate(size)
            self._file.seek(size)

    def write(self, **record: Any) -> None:
        """Append a record; what is not finite becomes null, for JSON has no other word for it."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        self._file.write(json.dumps(finite).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Wait until all is on the disk; the file's bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_tensorboard(folder: Path, step: int) -> Any:
    """TensorBoard's writer into ``folder``, from ``step`` on; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step)


class Log:
    """The main process's log, in a folder: ``log.jsonl``, ``tensorboard/``, the terminal.

    Args:
        folder: an existing one.
        size: bytes of ``log.jsonl`` to keep.
        step: the first one that will be logged.
        console: the terminal.
    """

    def __init__(self, folder: Path, size: int | None, step: int, console: Console) -> None:
        self.console = console
        self._records = RecordFile(folder / "log.jsonl", size)
        self._board = open_tensorboard(folder / "tensorboard", step)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bar = self._progress.add_task("", total=None, figures="")

    def __enter__(self) -> Log:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._board is not None:
            self._board.close()
        self._records.close()

    def say(self, text: str) -> None:
        """A line at the terminal."""
        shown = text.encode("utf-8", "replace").decode()  # names of files need not be UTF-8
        self.console.print(shown, highlight=False, markup=False, soft_wrap=True)

    def record(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """A record; its numbers are TensorBoard's curves as well."""
        self._records.write(kind=kind, step=step, **figures)
        if self._board is not None:
            for name, value in figures.items():
                if isinstance(value, (int, float)) and name not in ("epoch", "time"):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def show(self, title: str, done: float, total: float, figures: str = "") -> None:
        """Move the bar."""
        self._progress.update(
            self._bar, description=title, completed=done, total=total, figures=figures
        )

    def sync(self) -> int:
        """Wait until the records are on the disk; their bytes."""
        return self._records.sync()


class Silent(Log):
    """The log of every other process: none."""

    def __init__(self) -> None:
        pass

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def record(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        pass

    def show(self, title: str, done: float, total: float, figures: str = "") -> None:
        pass

    def sync(self) -> int:
        return 0
