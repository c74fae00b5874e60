"""Training's random transforms of clips, as the official recipes have them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .rand_augment import RandAugment
from .transforms import normalise, resize_short_side

TRIES = 10  # draws of a box before the centre, or nothing, is taken


@dataclass(frozen=True)
class Augment:
    """A random clip of training from frames: the official order of the official steps.

    RandAugment, normalisation, a random crop at a random scale, a flip, a random box erased; all
    frames of a clip in the same way.

    Args:
        size: side of the square clip, in pixels.
        rand_augment: how, like ``"rand-m7-n4-mstd0.5-inc1"``; None for without.
        area: share of the picture that the crop covers.
        aspect: width over height of the crop.
        short_side: if given, the picture is first resized so that its short side is in this range,
            and a square of ``size`` pixels cut out: ``area`` and ``aspect`` do not count.
        flip: probability of a horizontal flip; 0 where left and right have a meaning.
        erase: probability that a box becomes noise.

    Raises:
        ValueError: a number is out of its range.
    """

    size: int
    rand_augment: str | None = "rand-m7-n4-mstd0.5-inc1"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (0.75, 4 / 3)
    short_side: tuple[int, int] | None = None
    flip: float = 0.5
    erase: float = 0.25
    random: bool = field(default=True, init=False, repr=False)
    _policy: RandAugment | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected at least 1, got {self.size}")
        for name in ("flip", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        for name, most in (("area", 1), ("aspect", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise ValueError(f"{name}: expected 0 < low <= high <= {most}, got {low}, {high}")
        if self.short_side and not self.size <= self.short_side[0] <= self.short_side[1]:
            raise ValueError(
                f"short_side: expected {self.size} <= low <= high, got {self.short_side}"
            )
        policy = None if self.rand_augment is None else RandAugment.parse(self.rand_augment)
        object.__setattr__(self, "_policy", policy)

    def __call__(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """uint8 ``[T, H, W, 3]`` to float32 ``[1, 3, T, size, size]``."""
        if self._policy is not None:
            frames = self._policy(frames, generator)
        if self.short_side is None:
            clip = random_resized_crop(frames, self.size, self.area, self.aspect, generator)
        else:
            clip = random_scale_crop(frames, self.size, self.short_side, generator)
        if _uniform(0, 1, generator) < self.flip:
            clip = clip.flip(-1)
        if _uniform(0, 1, generator) < self.erase:
            clip = random_erase(clip, generator)
        return clip[None]


def _uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _place(slack: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(slack + 1, (), generator=generator))


def random_resized_crop(
    frames: Tensor,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (0.75, 4 / 3),
    generator: torch.Generator | None = None,
) -> Tensor:
    """A random box of the picture, resized bilinearly without antialias, and normalised.

    Its area is uniform in ``area`` (a share of the picture's), the logarithm of width over height
    uniform in that of ``aspect``; if ten such boxes are larger than the picture, it is the largest
    in the centre whose ratio is allowed.

    Args:
        frames: uint8 ``[T, H, W, 3]``.
        size: side of the result.
        area, aspect: see above.
        generator: source of randomness, PyTorch's default if None.

    Returns:
        float32 ``[3, T, size, size]``.
    """
    H, W = frames.shape[1:3]
    top, left, height, width = _crop_box(H, W, area, aspect, generator)
    clip = normalise(frames[:, top : top + height, left : left + width])
    return F.interpolate(clip, (size, size), mode="bilinear", align_corners=False)


def _crop_box(
    H: int,
    W: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator | None,
) -> tuple[int, int, int, int]:
    """Top, left, height, width."""
    for _ in range(TRIES):
        height, width = _draw_box(H * W, area, aspect, generator)
        if 0 < height <= H and 0 < width <= W:
            return _place(H - height, generator), _place(W - width, generator), height, width
    low, high = aspect
    height, width = min(H, round(W / low)), min(W, round(H * high))
    return (H - height) // 2, (W - width) // 2, height, width


def _draw_box(
    pixels: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator | None,
) -> tuple[int, int]:
    """Height and width of a box with a share of ``pixels`` and a ratio of width to height."""
    target = pixels * _uniform(area[0], area[1], generator)
    ratio = math.exp(_uniform(math.log(aspect[0]), math.log(aspect[1]), generator))
    return round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))


def random_scale_crop(
    frames: Tensor,
    size: int,
    short_side: tuple[int, int],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Resize the short side to a random length of a range, cut a random square, normalise.

    Args:
        frames: uint8 ``[T, H, W, 3]``.
        size: side of the square.
        short_side: the least and the largest length, in pixels.
        generator: source of randomness, PyTorch's default if None.

    Returns:
        float32 ``[3, T, size, size]``.
    """
    clip = resize_short_side(normalise(frames), round(_uniform(*short_side, generator)))
    top, left = (_place(side - size, generator) for side in clip.shape[-2:])
    return clip[..., top : top + size, left : left + size]


def random_erase(
    clip: Tensor,
    generator: torch.Generator | None = None,
    *,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Replace a random box, the same in all frames, by noise N(0, 1), fresh for each frame.

    A box that does not fit into the picture is drawn anew, ten times at most.

    Args:
        clip: ``[3, T, H, W]``, normalised; not changed.
        generator: source of randomness, PyTorch's default if None.
        area: share of the picture, uniform in this range.
        aspect: width over height, its logarithm uniform.
    """
    H, W = clip.shape[-2:]
    for _ in range(TRIES):
        height, width = _draw_box(H * W, area, aspect, generator)
        if 0 < height < H and 0 < width < W:
            top, left = _place(H - height, generator), _place(W - width, generator)
            noise = torch.randn(*clip.shape[:2], height, width, generator=generator)
            clip = clip.clone()
            clip[..., top : top + height, left : left + width] = noise
            break
    return clip
