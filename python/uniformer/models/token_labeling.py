"""UniFormer for images, trained with a label for every token."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..layers.basic import classifier
from ..registry import register
from .base import IMAGE_INPUT
from .image import ImageUniFormer

Box = tuple[int, int, int, int]
"""Of a grid, ``(top, left, bottom, right)``; bottom and right lie behind it."""

_SMALL, _SMALL_PLUS, _BASE = (
    {"depths": (3, 4, 8, 3)},
    {"depths": (3, 5, 9, 3), "conv_stem": True},
    {"depths": (5, 8, 20, 7)},
)
_AUXILIARY_WEIGHT = 0.5


@register(
    uniformer_small_tl={**_SMALL, "head_dim": 32},
    uniformer_small_dim64_tl=_SMALL,
    uniformer_small_plus_tl={**_SMALL_PLUS, "head_dim": 32},
    uniformer_small_plus_dim64_tl=_SMALL_PLUS,
    uniformer_base_tl={**_BASE, "head_dim": 32},
    uniformer_base_dim64_tl=_BASE,
    uniformer_large_ls_tl={
        "depths": (5, 10, 24, 7),
        "dims": (128, 192, 448, 640),
        "layer_scale": 1e-6,
        "local_layer_scale": 1e-6,
    },
)
class TokenLabelingUniFormer(ImageUniFormer):
    """``ImageUniFormer`` with a second head, for the tokens (TPAMI 2023, section 4.1).

    Evaluation adds half of a class's largest token logit to that of the pooled features, so the
    second head belongs to the predictions.

    Args:
        num_classes: outputs of either head; 0 leaves the pooled features.
        mix_token: whether training swaps a box of the first stage's grid between each sample and
            the one at the same place in the reversed batch, with torch's random numbers.
        **keywords: as ``ImageUniFormer`` takes them.
    """

    classifiers = ("head", "aux_head")
    # The official crop. Which normalisation came with it depends on the version of timm; the
    # older one's is ImageNet's.
    input_cfg: ClassVar = {**IMAGE_INPUT, "crop_pct": 0.9}

    def __init__(
        self, *, num_classes: int = 1000, mix_token: bool = False, **keywords: Any
    ) -> None:
        super().__init__(num_classes=num_classes, **keywords)
        self.mix_token = mix_token
        self.aux_head = classifier(self.num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Box]:
        """Classify images ``[B, in_chans, H, W]``.

        Returns:
            When evaluating logits ``[B, num_classes]``. When training what
            ``token_labeling_loss`` takes: logits of the samples ``[B, num_classes]``, of their
            tokens ``[B, N, num_classes]``, and the box of tokens that were swapped. The tokens'
            logits are swapped back: each stands in the sample it came from.

        Raises:
            ValueError, TypeError: as for every model.
        """
        if not self.training:
            return super().forward(x)
        x = self.patch_embed1(self._channels_last(x))
        box = random_box(*x.shape[2:4]) if self.mix_token else (0, 0, 0, 0)
        features = self._normalised(self._pick(self._behind_stem(swap(x, box)))[0])
        # From stride 4 to 32: the official rounding, which labels some border tokens wrongly.
        top, left, bottom, right = (corner // 8 for corner in box)
        box = (top, left, bottom, right)
        tokens = swap(self.aux_head(features), box).flatten(1, 3)
        return super().forward_head(features), tokens, box

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """As for every model; the logits are those of both heads."""
        logits = super().forward_head(features, pre_logits)
        if pre_logits or not self.num_classes:
            return logits
        return logits + _AUXILIARY_WEIGHT * self.aux_head(features).amax((1, 2, 3))


def random_box(height: int, width: int) -> Box:
    """A box of an even share of the grid, its centre anywhere, cut off at the borders."""
    share = torch.rand(()).item()
    corners = []
    for size in (height, width):
        half = int(size * math.sqrt(share)) // 2
        centre = int(torch.randint(size, ()))
        corners.append((max(centre - half, 0), min(centre + half, size)))
    (top, bottom), (left, right) = corners
    return top, left, bottom, right


def swap(x: Tensor, box: Box) -> Tensor:
    """``[B, T, H, W, C]`` with the box taken from the reversed batch; twice gives ``x`` back."""
    top, left, bottom, right = box
    if top == bottom or left == right:
        return x
    y = x.clone()
    y[:, :, top:bottom, left:right] = x[:, :, top:bottom, left:right].flip(0)
    return y
