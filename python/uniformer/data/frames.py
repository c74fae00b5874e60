"""Decode chosen frames of a video that is a folder of images, as Something-Something's are."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .video import VideoError

try:
    from PIL import Image
except ModuleNotFoundError:  # video files need no Pillow
    Image = None  # type: ignore[assignment]


def decode_images(
    folder: str | os.PathLike, indices: Sequence[int] | Tensor, *, template: str
) -> Tensor:
    """Decode the images at ``indices``, in their order.

    Args:
        folder: where the images are.
        indices: frame numbers from 0 (the names count from 1), any order, repeats allowed; at least
            one.
        template: names of the images, with a place for the number, like ``"img_{:05d}.jpg"``.

    Returns:
        uint8 RGB ``[len(indices), H, W, 3]``.

    Raises:
        VideoError: an image is missing, cannot be read, or differs in size from the others.
        ImportError: Pillow is missing.
    """
    if Image is None:
        raise ImportError("folders of frames need Pillow: pip install 'uniformer-kernels[train]'")
    indices = [int(i) for i in indices]
    images = {}
    for index in sorted(set(indices)):
        path = os.path.join(folder, template.format(index + 1))
        try:
            with Image.open(path) as image:
                images[index] = np.asarray(image.convert("RGB"))
        except (OSError, ValueError) as error:  # Pillow's errors are OSErrors
            reason = getattr(error, "strerror", None) or error
            raise VideoError(f"path: expected an image, got {path!r}: {reason}") from error
    if len(sizes := {image.shape[:2] for image in images.values()}) > 1:
        raise VideoError(f"path: expected images of one size in {str(folder)!r}, got {sizes}")
    return torch.from_numpy(np.stack([images[index] for index in indices]))
