"""Folders that can be written to, files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def make_folder(out: Path) -> None:
    """Make a folder that files can be written to: before the work whose results it is for.

    Raises:
        ValueError: it cannot be made, or nothing written to it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        message = f"out: expected a folder to write to, got {str(out)!r}: {error}"
        raise ValueError(message) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A path in the same folder to write to, which takes the place of ``path`` at the end.

    Until then, and for good when the writing fails or the machine does, what was there stays.
    """
    path = Path(path)
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # the content first: else the new name may outlive it
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
