"""Folders that can be written to, files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def check_folder(out: Path) -> None:
    """Whether there can be a folder to write to: before the work whose results it is for.

    Raises:
        ValueError: it cannot be made, or nothing written to it.
    """
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        reason = "cannot be written to" if there.is_dir() else "is no folder"
        raise ValueError(
            f"out: expected a folder to write to, got {str(out)!r}: {str(there)!r} {reason}"
        )


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
