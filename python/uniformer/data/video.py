"""Decode chosen frames of a video file: with PyAV, and with torchcodec where that is installed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

try:
    import av
except ModuleNotFoundError:  # models need no videos
    av = None  # type: ignore[assignment]

# Containers with one video inside. FFmpeg also opens text (as ANSI art) and playlists, and a
# playlist may name any other file or address: those are not videos here.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,h264,hevc,ivf,nut"


class VideoError(ValueError):
    """A file cannot be read as a video; says which, what was expected and what came."""


def _error(path: str, came: object) -> VideoError:
    return VideoError(f"path: expected a video file, got {path!r}: {came}")


@contextmanager
def _opened(path: str | bytes | os.PathLike) -> Iterator[tuple[str, av.VideoStream]]:
    if av is None:
        raise ImportError("videos need PyAV: pip install 'uniformer-kernels[video]'")
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
            if get_worker_info() is None:
                stream.thread_type = "AUTO"
            else:  # there are others at work already
                stream.codec_context.thread_count = 1
            yield path, stream
    except (av.FFmpegError, OSError) as error:
        came: object
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
        container: Any = stream.container  # one that is read
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        return


def _frames(stream: av.VideoStream, packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
    """Every frame that decodes, in the order of display; damaged packets are passed over."""
    for packet in chain(packets, [None]):  # None drains the decoder
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
        return _shown(name, stream, _packets(stream))


def _shown(name: str, stream: av.VideoStream, packets: Iterable[av.Packet]) -> int:
    """How many frames there are in all the packets of a stream."""
    # Discarded packets (before the start of an edit list) are decoded but never shown.
    shown = [not packet.is_discard for packet in packets]
    if not any(shown):
        raise _error(name, "it has no frames")
    if len(shown) < stream.frames:
        warnings.warn(
            f"{name!r}: expected {stream.frames} frames from its header, got {len(shown)}: "
            "truncated?",
            stacklevel=3,
        )
    return sum(shown)


def decode(
    path: str | bytes | os.PathLike,
    indices: Sequence[int] | Tensor | Callable[[int], Sequence[int] | Tensor],
) -> Tensor:
    """Decode the frames at ``indices``, in their order, upright as they are to be shown.

    An index past the last frame that decodes gives that last frame, with a warning. torchcodec,
    where it is installed, gives the same frames and reads less of a long file.

    Args:
        path: the video file.
        indices: frame numbers from 0, any order, repeats allowed; at least one. Or a function that
            makes them from the number of frames; the compressed video is kept in memory then.

    Returns:
        uint8 RGB ``[len(indices), H, W, 3]``.

    Raises:
        VideoError: the file is missing, not a video, or not one frame of it decodes.
        ValueError: ``indices`` is empty or has a negative number.
    """
    with _opened(path) as (name, stream):
        packets: Iterable[av.Packet] = _packets(stream)
        if callable(indices):
            packets = list(packets)
            indices = indices(_shown(name, stream, packets))
        indices = [int(i) for i in indices]
        if not indices or min(indices) < 0:
            raise ValueError(f"indices: expected at least one and none negative, got {indices}")
        if (decoder := _torchcodec()) is not None:
            try:
                threads = 0 if get_worker_info() is None else 1
                file = os.path.abspath(name)  # never an address
                video = decoder(file, dimension_order="NHWC", num_ffmpeg_threads=threads)
                return video.get_frames_at(indices).data
            except (RuntimeError, ValueError, IndexError):
                pass  # PyAV gets what there is, or says what is wrong
        return _pick(name, _frames(stream, packets), indices)


@cache
def _torchcodec() -> Any:
    """torchcodec's decoder, where it is installed and fits this PyTorch and the FFmpeg there is."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):
        return None
    return VideoDecoder


def _pick(name: str, frames: Iterator[av.VideoFrame], indices: list[int]) -> Tensor:
    """The frames at ``indices``."""
    wanted, last = set(indices), max(indices)
    kept: dict[int, np.ndarray] = {}
    size = (0, 0)
    count = 0
    for frame in frames:
        if not count:  # a stream may change its size on the way
            size = frame.width, frame.height
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
            stacklevel=3,
        )
        kept.setdefault(count - 1, _rgb(frame, size))
    return torch.from_numpy(np.stack([kept[min(i, count - 1)] for i in indices]))


def _rgb(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    picture = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    return np.rot90(picture, round(frame.rotation / 90))  # telephones keep them lying
