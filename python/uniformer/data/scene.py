"""A short moving scene as a real video file, for where no video is at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import av
import numpy as np


@dataclass(frozen=True)
class Shape:
    """A regular polygon that drifts around a centre while it turns.

    Lengths are in heights of the picture, ``speed`` and ``spin`` in turns a second.
    """

    sides: int
    radius: float
    centre: tuple[float, float]
    orbit: tuple[float, float]
    speed: float
    spin: float
    colour: tuple[int, int, int]

    def cover(self, x: np.ndarray, y: np.ndarray, seconds: float) -> np.ndarray:
        """How much of each pixel the shape covers, 0..1, smooth at its edge."""
        phase = 2 * np.pi * self.speed * seconds
        x = x - self.centre[0] - self.orbit[0] * np.cos(phase)
        y = y - self.centre[1] - self.orbit[1] * np.sin(phase)
        sector = 2 * np.pi / self.sides
        angle = (np.arctan2(y, x) - 2 * np.pi * self.spin * seconds) % sector - sector / 2
        edge = self.radius * np.cos(sector / 2) - np.hypot(x, y) * np.cos(angle)
        return np.clip(edge / (x[0, 1] - x[0, 0]) + 0.5, 0, 1)


SHAPES = (
    Shape(4, 0.24, (0.45, 0.50), (0.25, 0.20), 0.15, 0.25, (226, 74, 51)),
    Shape(3, 0.20, (0.95, 0.45), (0.20, 0.25), -0.20, -0.40, (245, 196, 62)),
    Shape(6, 0.15, (0.70, 0.70), (0.45, 0.12), 0.10, 0.30, (66, 133, 190)),
    Shape(48, 0.09, (0.65, 0.30), (0.50, 0.20), -0.30, 0.00, (250, 250, 245)),
)


def _background(width: int, height: int) -> np.ndarray:
    """A texture that tiles, so that rolling it pans without a seam: ``[H, W, 3]``."""
    x, y = np.meshgrid(
        np.linspace(0, 2 * np.pi, width, False), np.linspace(0, 2 * np.pi, height, False)
    )
    waves = (
        np.sin(3 * x + 2 * np.sin(2 * y)) + np.sin(5 * y + np.cos(4 * x)) + np.sin(9 * x - 7 * y)
    )
    grain = np.random.default_rng(0).normal(0, 6, (height, width))
    tint = np.array([18.0, 26.0, 22.0])
    return np.array([74.0, 96.0, 92.0]) + waves[..., None] * tint / 2 + grain[..., None]


def scene_frames(
    *, seconds: float = 10, fps: int = 30, width: int = 320, height: int = 240
) -> Iterator[np.ndarray]:
    """Draw the scene frame by frame: uint8 RGB ``[height, width, 3]``, the same on every call."""
    background = _background(width, height)
    x, y = np.meshgrid(np.arange(width) / height, np.arange(height) / height)
    for index in range(round(seconds * fps)):
        picture = np.roll(background, (index // 3, index), axis=(0, 1))
        for shape in SHAPES:
            cover = shape.cover(x, y, index / fps)[..., None]
            picture = picture + cover * (np.array(shape.colour) - picture)
        yield picture.clip(0, 255).astype(np.uint8)


def write_video(path: str | os.PathLike, frames: Iterator[np.ndarray], *, fps: int = 30) -> Path:
    """Encode frames to an MP4 file, H.264 yuv420p where FFmpeg has x264 and MPEG-4 elsewhere.

    Args:
        path: the file to write; an existing one is replaced.
        frames: uint8 RGB ``[H, W, 3]``, all of one size, both even; at least one.
        fps: frames a second.

    Raises:
        ValueError: there are no frames.
    """
    codec, options = "mpeg4", {}
    if "libx264" in av.codecs_available:
        # With several threads or a slower preset, x264 does not repeat itself to the bit.
        codec, options = "libx264", {"preset": "superfast"}
    stream = None
    # The index goes in front, so that the beginning of a truncated copy still plays.
    with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "faststart"}) as out:
        for frame in frames:
            if stream is None:
                added = out.add_stream(codec, rate=fps, options=options)
                stream = cast("av.VideoStream", added)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.thread_count = 1
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if stream is None:
            raise ValueError("frames: expected at least one, got none")
        out.mux(stream.encode(None))
    return Path(path)
