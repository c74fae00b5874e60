"""A small real task that needs time: which way, and how fast, a handwritten digit moves.

Every clip shows one of scikit-learn's digits on a plain ground, in two colours and with some noise,
from a place that is drawn; it goes in one of eight directions at one of two speeds, and what leaves
the picture on one side comes back on the other. So a digit is anywhere in every class alike, and a
single frame tells nothing about the class.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .lists import Video

SIZE, FRAMES, DIGIT = 32, 16, 14  # pixels, frames, pixels
SPEEDS = {"fast": 2.5, "slow": 1.0}  # pixels a frame
DIRECTIONS = {
    "down": (0, 1),
    "down-left": (-1, 1),
    "down-right": (1, 1),
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "up-left": (-1, -1),
    "up-right": (1, -1),
}
CLASSES = [f"{direction}, {speed}" for direction in DIRECTIONS for speed in SPEEDS]
CLIPS = {"train": 2048, "val": 512}
TRAIN_DIGITS = 1400  # the first of 1797; people wrote either these or the others


def motion(
    folder: str | os.PathLike, *, split: str, clips: int | None = None, seed: int = 0
) -> tuple[list[Video], list[str]]:
    """Render and encode the videos of the task, those that are not there yet, and list them.

    They are H.264 files of 16 frames of 32 x 32, in a folder for each class, as
    :func:`~uniformer.data.read_videos` reads it. Each is complete or not there, so a rendering that
    was killed goes on. Splits have different people's digits.

    Args:
        folder: where the splits are kept, a folder each.
        split: ``"train"`` or ``"val"``.
        clips: how many, as many of each class; 2048 and 512 if None.
        seed: of everything that is drawn.

    Returns:
        The videos, and the names of the 16 classes.

    Raises:
        ValueError: there is no such split, ``clips`` is below the number of classes, or the folder
            has videos of another seed.
        ImportError: there is something to render, and scikit-learn, PyAV or tqdm is missing.
    """
    if split not in CLIPS:
        raise ValueError(f"split: expected 'train' or 'val', got {split!r}")
    clips = CLIPS[split] if clips is None else clips
    if clips < len(CLASSES):
        raise ValueError(f"clips: expected at least {len(CLASSES)}, one a class, got {clips}")
    folder = Path(folder)
    _claim(folder, seed)
    videos = [
        Video(folder / split / CLASSES[number % len(CLASSES)] / f"{number:05}.mp4", label)
        for number in range(clips)
        for label in [number % len(CLASSES)]
    ]
    if missing := [number for number, video in enumerate(videos) if not video.path.exists()]:
        _write(videos, missing, split, seed)
    return videos, CLASSES


def _write(videos: list[Video], missing: list[int], split: str, seed: int) -> None:
    """Render and encode those of the videos that are missing."""
    try:
        from tqdm import tqdm

        from .scene import write_video
    except ModuleNotFoundError as error:
        raise _incomplete() from error
    for number in tqdm(missing, f"Rendering {split}", unit="clip"):
        path = videos[number].path
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
        try:
            write_video(unfinished, render(split, number, seed), fps=FRAMES)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _incomplete() -> ImportError:
    return ImportError(
        "the motion task needs PyAV, scikit-learn and tqdm: pip install 'uniformer-kernels[train]'"
    )


def _claim(folder: Path, seed: int) -> None:
    """Say what is in the folder, or see that it is what is wanted."""
    wanted = {"seed": seed, "size": SIZE, "frames": FRAMES, "digit": DIGIT, "speeds": SPEEDS}
    path = folder / "motion.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".motion.{os.getpid()}.json"
        unfinished.write_text(json.dumps(wanted) + "\n")
        unfinished.replace(path)
    elif (found := json.loads(path.read_text())) != wanted:
        raise ValueError(f"folder: expected videos of {wanted} in {str(folder)!r}, got {found}")


def render(split: str, number: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The frames of one clip, uint8 RGB ``[32, 32, 3]``; its class is ``number`` modulo 16."""
    rng = np.random.default_rng([seed, sorted(CLIPS).index(split), number])
    direction, speed = CLASSES[number % len(CLASSES)].split(", ")
    x, y = DIRECTIONS[direction]
    step = SPEEDS[speed] / math.hypot(x, y) * np.array([y, x])
    first, last = (0, TRAIN_DIGITS) if split == "train" else (TRAIN_DIGITS, len(_digits()))
    canvas = np.zeros((SIZE, SIZE))
    canvas[:DIGIT, :DIGIT] = _digits()[rng.integers(first, last)]
    place = rng.uniform(0, SIZE, 2)
    ground, ink = rng.uniform(20, 80, 3), rng.uniform(150, 250, 3)
    for time in range(FRAMES):
        cover = np.roll(canvas, np.rint(place + time * step).astype(int), (0, 1))[..., None]
        grain = rng.normal(0, 8, (SIZE, SIZE, 1))
        yield (ground + cover * (ink - ground) + grain).clip(0, 255).astype(np.uint8)


@cache
def _digits() -> np.ndarray:
    """scikit-learn's digits, enlarged, from 0 to 1: ``[1797, DIGIT, DIGIT]``."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise _incomplete() from error
    small = torch.from_numpy(load_digits().images)[:, None] / 16
    return F.interpolate(small, (DIGIT, DIGIT), mode="bilinear")[:, 0].numpy()
