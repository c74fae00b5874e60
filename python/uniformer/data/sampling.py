"""Which frames of a video make up a clip: the official rules.

*Dense* (Kinetics, UCF101, HMDB51) takes ``frames`` frames over a span of ``frames * stride``;
*uniform* (Something-Something) takes one frame from each of ``frames`` equal segments of the video.
Both give int64 indices in ``[0, num_frames)``, whatever the video's length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


def _dense(start: float, num_frames: int, frames: int, stride: int) -> Tensor:
    # The spacing is (span - 1) / (frames - 1), 4.2 for 16x4, and float32 decides the truncation:
    # both are the official behaviour.
    index = torch.linspace(start, start + frames * stride - 1, frames, dtype=torch.float32)
    return index.clamp(0, num_frames - 1).long()


def dense_train(
    num_frames: int, frames: int, stride: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """One clip at a random (real-valued) start: indices ``[frames]``.

    Args:
        num_frames: length of the video.
        frames: frames in a clip.
        stride: nominal distance between them.
        generator: source of randomness, PyTorch's default if None.

    Raises:
        ValueError: a size is below 1.
    """
    _check(num_frames=num_frames, frames=frames, stride=stride)
    slack = max(num_frames - frames * stride, 0)
    start = torch.rand((), generator=generator, dtype=torch.float64).item() * slack
    return _dense(start, num_frames, frames, stride)


def dense_test(num_frames: int, frames: int, stride: int, clips: int = 1) -> Tensor:
    """``clips`` clips spread evenly from the start, or one in the middle: ``[clips, frames]``.

    Args:
        num_frames: length of the video.
        frames: frames in a clip.
        stride: nominal distance between them.
        clips: how many clips.

    Raises:
        ValueError: a size is below 1.
    """
    _check(num_frames=num_frames, frames=frames, stride=stride, clips=clips)
    slack = max(num_frames - frames * stride, 0)
    starts = [slack // 2] if clips == 1 else [k * (slack // (clips - 1)) for k in range(clips)]
    return torch.stack([_dense(start, num_frames, frames, stride) for start in starts])


def _borders(num_frames: int, frames: int) -> tuple[float, list[int]]:
    segment = (num_frames - 1) / frames
    return segment, [round(segment * i) for i in range(frames + 1)]  # halves round to even


def uniform_train(
    num_frames: int, frames: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """One random frame from each segment, both of its ends included: indices ``[frames]``.

    Args:
        num_frames: length of the video.
        frames: frames in a clip.
        generator: source of randomness, PyTorch's default if None.

    Raises:
        ValueError: a size is below 1.
    """
    _check(num_frames=num_frames, frames=frames)
    borders = torch.tensor(_borders(num_frames, frames)[1])
    low, high = borders[:-1], borders[1:]
    draw = torch.rand(frames, generator=generator, dtype=torch.float64)
    return low + (draw * (high - low + 1)).long()


def uniform_test(num_frames: int, frames: int, views: int = 1) -> Tensor:
    """``views`` clips, view k at ``(k + 1) / (views + 1)`` of a segment: ``[views, frames]``.

    Args:
        num_frames: length of the video.
        frames: frames in a clip.
        views: how many clips.

    Raises:
        ValueError: a size is below 1.
    """
    _check(num_frames=num_frames, frames=frames, views=views)
    segment, borders = _borders(num_frames, frames)
    low = torch.tensor(borders[:-1])
    offsets = torch.tensor([int(segment / (views + 1) * (k + 1)) for k in range(views)])
    return (low + offsets[:, None]).clamp(max=num_frames - 1)


@dataclass(frozen=True)
class Dense:
    """Dense sampling with a stride, as :func:`dense_train` and :func:`dense_test` do it."""

    stride: int

    def __post_init__(self) -> None:
        _check(stride=self.stride)

    def random(self, length: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
        """A clip of training from a video of ``length`` frames: indices ``[frames]``."""
        return dense_train(length, frames, self.stride, generator=generator)

    def spread(self, length: int, frames: int, views: int = 1) -> Tensor:
        """The clips of a test: indices ``[views, frames]``."""
        return dense_test(length, frames, self.stride, views)


@dataclass(frozen=True)
class Uniform:
    """Uniform sampling, as :func:`uniform_train` and :func:`uniform_test` do it."""

    def random(self, length: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
        """A clip of training from a video of ``length`` frames: indices ``[frames]``."""
        return uniform_train(length, frames, generator=generator)

    def spread(self, length: int, frames: int, views: int = 1) -> Tensor:
        """The clips of a test: indices ``[views, frames]``."""
        return uniform_test(length, frames, views)
