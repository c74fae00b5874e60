"""Decode chosen frames of a video file with PyAV."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import av
import numpy as np
import torch
from torch import Tensor

# Containers with one video inside. FFmpeg also opens text (as ANSI art) and playlists, and a
# playlist may name any other file or address: those are not videos here.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,h264,hevc,ivf,nut"


class VideoError(ValueError):
    """A file cannot be read as a video; says which, what was expected and what came."""


def _error(path: str, came: object) -> VideoError:
    return VideoError(f"path: expected a video file, got {path!r}: {came}")


@contextmanager
def _opened(path: str | bytes | os.PathLike) -> Iterator[tuple[str, av.VideoStream]]:
    path = os.fsdecode(path)
    if not os.path.exists(path):
        raise _error(path, "no such file")
    if not os.path.isfile(path):
        raise _error(path, "a directory" if os.path.isdir(path) else "not a regular file")
    try:
        # Python opens the file, so that a name in any encoding works and none is taken for a URL.
        with (
            open(path, "rb") as file,
            av.open(file, options={"format_whitelist": CONTAINERS}) as container,
        ):
            if not container.streams.video:
                raise _error(path, "it has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield path, stream
    except (av.FFmpegError, OSError) as error:
        if os.path.getsize(path) == 0:
            came = "an empty file"
        elif isinstance(error, av.ArgumentError):  # what FFmpeg says of one not in CONTAINERS
            came = "not a video container"
        else:
            came = error.strerror or error
        raise _error(path, came) from error


def _packets(stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets up to the end, or to where a damaged file stops being readable."""
    try:
        for packet in stream.container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        return


def _frames(stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Every frame that decodes, in the order of display; damaged packets are passed over."""
    for packet in chain(_packets(stream), [None]):  # None drains the decoder
        try:
            yield from stream.decode(packet)
        except av.FFmpegError:
            continue


def count_frames(path: str | bytes | os.PathLike) -> int:
    """Count the frames a video file holds, without decoding them.

    Warns when the file holds fewer than its header promises (a truncated file).

    Raises:
        VideoError: the file is missing, not a video, or has no frame.
    """
    with _opened(path) as (name, stream):
        promised = stream.frames
        # Discarded packets (before the start of an edit list) are decoded but never shown.
        shown = [not packet.is_discard for packet in _packets(stream)]
    if not any(shown):
        raise _error(name, "it has no frames")
    if len(shown) < promised:
        warnings.warn(
            f"{name!r}: expected {promised} frames from its header, got {len(shown)}: truncated?",
            stacklevel=2,
        )
    return sum(shown)


def decode(path: str | bytes | os.PathLike, indices: Sequence[int] | Tensor) -> Tensor:
    """Decode the frames at ``indices``, in their order, in one pass over the file.

    An index past the last frame that decodes gives that last frame, with a warning.

    Args:
        path: the video file.
        indices: frame numbers from 0, any order, repeats allowed; at least one.

    Returns:
        uint8 RGB ``[len(indices), H, W, 3]``.

    Raises:
        VideoError: the file is missing, not a video, or not one frame of it decodes.
        ValueError: ``indices`` is empty or has a negative number.
    """
    indices = [int(i) for i in indices]
    if not indices or min(indices) < 0:
        raise ValueError(f"indices: expected at least one and none negative, got {indices}")
    wanted, last = set(indices), max(indices)
    kept: dict[int, np.ndarray] = {}
    size: tuple[int, int] | None = None
    count = 0
    with _opened(path) as (name, stream):
        for frame in _frames(stream):
            size = size or (frame.width, frame.height)  # a stream may change its size on the way
            if count in wanted:
                kept[count] = _rgb(frame, size)
            count += 1
            if count > last:
                break
        else:
            if not count:
                raise _error(name, "not one frame decodes")
            warnings.warn(
                f"{name!r}: expected at least {last + 1} frames, got {count}: the last one stands "
                "in for those that are missing",
                stacklevel=2,
            )
            kept.setdefault(count - 1, _rgb(frame, size))
    return torch.from_numpy(np.stack([kept[min(i, count - 1)] for i in indices]))


def _rgb(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    return frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
