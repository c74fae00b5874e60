"""RandAugment (Cubuk et al. 2020) for clips, as the official recipes' strings describe it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from PIL import Image, ImageEnhance, ImageOps
except ModuleNotFoundError:  # models need no augmentation
    Image = None  # type: ignore[assignment]

MOST = 10  # the largest magnitude
APPLIED = 0.5  # probability that an operation that was drawn is carried out
FILL = (128, 128, 128)  # what shows where the picture was moved away
KEYWORDS = {"m": "magnitude", "n": "layers", "mstd": "deviation", "inc": "increasing"}


Step = Callable[["Image.Image"], "Image.Image"]


@dataclass(frozen=True)
class RandAugment:
    """Some operations on the picture, one after another, drawn anew for every clip.

    Each of ``layers`` is drawn from :data:`OPERATIONS`, and carried out with probability 0.5; its
    magnitude is drawn from ``N(magnitude, deviation²)`` and clipped to ``[0, 10]``. All frames of
    a clip get the same.

    Args:
        magnitude: how strong operations are, from 0 to 10.
        layers: how many.
        deviation: of the magnitude.
        increasing: whether all operations get stronger with the magnitude. Without, ``posterise``
            and ``solarise`` get weaker, and enhancements leave the picture as it is in the middle.

    Raises:
        ValueError: a number is out of its range.
        ImportError: Pillow is missing.
    """

    magnitude: float = 10
    layers: int = 2
    deviation: float = 0
    increasing: bool = False

    def __post_init__(self) -> None:
        if Image is None:
            raise ImportError("RandAugment needs Pillow: pip install 'uniformer-kernels[train]'")
        if not 0 <= self.magnitude <= MOST:
            raise ValueError(f"magnitude: expected 0 to {MOST}, got {self.magnitude}")
        if self.layers < 0:
            raise ValueError(f"layers: expected at least 0, got {self.layers}")
        if not self.deviation >= 0:
            raise ValueError(f"deviation: expected at least 0, got {self.deviation}")

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """From a string like ``"rand-m7-n4-mstd0.5-inc1"``; what it leaves out is as usual.

        ``m`` is the magnitude, ``n`` the layers, ``mstd`` the deviation, ``inc`` increasing.

        Raises:
            ValueError: it is another string.
        """
        name, *parts = text.split("-")
        found = [re.fullmatch(r"(m|n|mstd|inc)(\d+(?:\.\d+)?)", part) for part in parts]
        if name != "rand" or not all(found):
            raise ValueError(
                f"rand_augment: expected a string like 'rand-m7-n4-mstd0.5-inc1', got {text!r}"
            )
        values: dict[str, Any] = {
            KEYWORDS[match[1]]: float(match[2]) for match in found if match is not None
        }
        for name, kind in (("layers", int), ("increasing", bool)):
            if name in values:
                values[name] = kind(values[name])
        return cls(**values)

    def __call__(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augment a clip: uint8 RGB ``[T, H, W, 3]`` to the same."""
        steps = list(filter(None, (self._draw(generator) for _ in range(self.layers))))
        if not steps:
            return frames
        images = [Image.fromarray(frame) for frame in frames.numpy()]
        for step in steps:
            images = [step(image) for image in images]
        return torch.from_numpy(np.stack([np.asarray(image) for image in images]))

    def _draw(self, generator: torch.Generator | None) -> Step | None:
        """An operation with its strength; None where it is not carried out."""
        which, applied, negative = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        noise = torch.randn((), generator=generator, dtype=torch.float64).item()
        if applied >= APPLIED:
            return None
        operation = list(OPERATIONS.values())[int(which * len(OPERATIONS))]
        level = min(max(self.magnitude + self.deviation * noise, 0), MOST) / MOST
        return partial(
            operation,
            level=level,
            sign=-1 if negative < 0.5 else 1,
            increasing=self.increasing,
        )


# The operations: an image, how strong from 0 to 1, which way, and whether increasing.


def _auto_contrast(image: Image.Image, **_: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalise(image: Image.Image, **_: float) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, **_: float) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, *, level: float, sign: int, **_: bool) -> Image.Image:
    return image.rotate(30 * sign * level, Image.Resampling.BICUBIC, fillcolor=FILL)


def _posterise(image: Image.Image, *, level: float, increasing: bool, **_: int) -> Image.Image:
    bits = 4 - int(4 * level) if increasing else int(4 * level)
    lost = 255 >> bits  # all of them at 0 bits, which Pillow's own function refuses
    return image.point([value & ~lost for value in range(256)] * 3)


def _solarise(image: Image.Image, *, level: float, increasing: bool, **_: int) -> Image.Image:
    threshold = int(256 * level)
    return ImageOps.solarize(image, 256 - threshold if increasing else threshold)


def _solarise_add(image: Image.Image, *, level: float, **_: int) -> Image.Image:
    add = int(110 * level)
    return image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)


def _enhance(
    kind: str, image: Image.Image, *, level: float, sign: int, increasing: bool
) -> Image.Image:
    factor = 1 + 0.9 * sign * level if increasing else 0.1 + 1.8 * level
    return getattr(ImageEnhance, kind)(image).enhance(factor)


def _move(axis: str, image: Image.Image, *, level: float, sign: int, **_: bool) -> Image.Image:
    """Shear by up to 0.3, or shift by up to 0.45 of the side."""
    shear, shift = 0.3 * sign * level, 0.45 * sign * level
    matrix = {
        "shear x": (1, shear, 0, 0, 1, 0),
        "shear y": (1, 0, 0, shear, 1, 0),
        "translate x": (1, 0, shift * image.width, 0, 1, 0),
        "translate y": (1, 0, 0, 0, 1, shift * image.height),
    }[axis]
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=FILL,
    )


OPERATIONS: dict[str, Callable[..., Image.Image]] = {
    "auto contrast": _auto_contrast,
    "equalise": _equalise,
    "invert": _invert,
    "rotate": _rotate,
    "posterise": _posterise,
    "solarise": _solarise,
    "solarise add": _solarise_add,
    **{kind.lower(): partial(_enhance, kind) for kind in ("Color", "Contrast", "Brightness")},
    "sharpness": partial(_enhance, "Sharpness"),
    **{axis: partial(_move, axis) for axis in ("shear x", "shear y", "translate x", "translate y")},
}
"""The fifteen operations there are."""
