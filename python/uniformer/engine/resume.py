"""What a run needs before its first step, and what one that goes on has to find as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .distributed import World
from .settings import Settings, SettingsError, differences
from .sources import Sources


def divide(videos: int, settings: Settings, world: World) -> tuple[int, int]:
    """Steps of an epoch, and videos that a process takes at a time.

    Raises:
        SettingsError: there are fewer videos than a batch has, or it cannot be divided.
    """
    parts = world.size * settings.accumulate
    if settings.batch_size % parts:
        raise SettingsError(
            f"batch_size: expected a multiple of {world.size} processes x "
            f"accumulate={settings.accumulate}, got {settings.batch_size}"
        )
    if settings.batch_size > videos:
        raise SettingsError(
            f"batch_size: expected at most {videos}, the number of videos, "
            f"got {settings.batch_size}"
        )
    return videos // settings.batch_size, settings.batch_size // parts


def open_folder(out: Path, checkpoint: Path, resume: bool) -> bool:
    """Make the folder; whether there is a run to go on with.

    Raises:
        SettingsError: there is one, and nobody said to go on; or there can be no folder.
    """
    there = checkpoint.exists()
    if there and not resume:
        raise SettingsError(
            f"out: expected a folder without a run, got {str(out)!r}; --resume goes on with it"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"out: cannot make the folder {str(out)!r}: {error}") from error
    return there


def facts_of(sources: Sources) -> dict[str, Any]:
    """What of the data a run that goes on has to find as it was."""
    names = sources.class_names
    return {
        "num_classes": sources.num_classes,
        "class_names": None if names is None else list(names),
        "training_videos": len(sources.training),
    }


def compare(
    saved: Mapping[str, Any], settings: Settings, sources: Sources, world: World
) -> list[str]:
    """What is not as it was when a checkpoint was saved, but may be.

    Raises:
        SettingsError: something else is not; lists all that must be.
    """
    must, may = differences(saved["settings"], asdict(settings))
    must += differences(saved["facts"], facts_of(sources))[0]
    if must:
        raise SettingsError("resume: the run was started with others:\n  " + "\n  ".join(must))
    notes = [f"resumed with another {line}" for line in may]
    if saved["world_size"] != world.size:
        notes.append(
            f"resumed by {world.size} processes, saved by {saved['world_size']}: the batches are "
            "the same, what comes of them is not to the bit"
        )
    return notes
