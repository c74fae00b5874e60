"""From decoded frames to a model's input: the official test-time processing of videos."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..normalisation import MEAN, STD


def normalise(frames: Tensor) -> Tensor:
    """``(frames / 255 - 0.45) / 0.225``: uint8 ``[T, H, W, 3]`` to float32 ``[3, T, H, W]``.

    Raises:
        TypeError: ``frames`` is not uint8.
        ValueError: ``frames`` is not ``[T, H, W, 3]``.
    """
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames: expected torch.uint8, got {frames.dtype}")
    if frames.dim() != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames: expected [T, H, W, 3], got {list(frames.shape)}")
    return (frames.permute(3, 0, 1, 2).float() / 255 - MEAN) / STD


def resize_short_side(clip: Tensor, size: int) -> Tensor:
    """Resize ``[C, T, H, W]`` bilinearly so that its short side is ``size``, the long one floored.

    Raises:
        ValueError: ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1, got {size}")
    H, W = clip.shape[-2:]
    if min(H, W) == size:
        return clip
    new = (size, math.floor(W / H * size)) if H < W else (math.floor(H / W * size), size)
    return F.interpolate(clip, new, mode="bilinear", align_corners=False)


def crop(clip: Tensor, size: int, position: int = 1) -> Tensor:
    """A square of side ``size`` from ``[C, T, H, W]``, along its long side.

    Args:
        clip: the resized clip.
        size: side of the square.
        position: 0, 1 or 2: left, centre, right; top, centre, bottom where height > width.

    Raises:
        ValueError: the clip is smaller than the crop, or ``position`` is another number.
    """
    H, W = clip.shape[-2:]
    if min(H, W) < size:
        raise ValueError(f"size: expected at most {min(H, W)}, the clip's short side, got {size}")
    if position not in (0, 1, 2):
        raise ValueError(f"position: expected 0, 1 or 2, got {position}")
    along_height, along_width = (position, 1) if H > W else (1, position)
    top, left = _offset(H - size, along_height), _offset(W - size, along_width)
    return clip[..., top : top + size, left : left + size]


def _offset(slack: int, position: int) -> int:
    return (0, math.ceil(slack / 2), slack)[position]


def take_view(frames: Tensor, size: int, position: int = 1) -> Tensor:
    """Normalise, resize the short side to ``size`` and crop: one view as the model takes it.

    Args:
        frames: uint8 RGB ``[T, H, W, 3]``.
        size: short side and side of the crop.
        position: which crop, as in :func:`crop`; 1 is the centre, Kinetics' single crop.

    Returns:
        float32 ``[3, T, size, size]``.

    Raises:
        TypeError, ValueError: as the steps above.
    """
    return crop(resize_short_side(normalise(frames), size), size, position)


@dataclass(frozen=True)
class Views:
    """The crops of a clip that a test takes; nothing is drawn.

    Args:
        size: side of the square crops.
        crops: which, as in :func:`crop`: ``(1,)`` the centre (Kinetics with one crop),
            ``(0, 1, 2)`` the three crops, ``(0,)`` Something-Something's single one.
        short_side: what the short side is resized to; ``size`` if None.

    Raises:
        ValueError: a size is below 1, ``short_side`` is below ``size``, or ``crops`` are none or
            others.
    """

    size: int
    crops: tuple[int, ...] = (1,)
    short_side: int | None = None
    random: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected at least 1, got {self.size}")
        if not self.crops or not set(self.crops) <= {0, 1, 2}:
            raise ValueError(f"crops: expected some of 0, 1, 2, got {self.crops}")
        if self.short_side is not None and self.short_side < self.size:
            raise ValueError(f"short_side: expected at least {self.size}, got {self.short_side}")

    def __call__(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """uint8 ``[T, H, W, 3]`` to float32 ``[len(crops), 3, T, size, size]``."""
        clip = resize_short_side(normalise(frames), self.short_side or self.size)
        return torch.stack([crop(clip, self.size, position) for position in self.crops])
