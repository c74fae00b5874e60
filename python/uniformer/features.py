"""Models as feature extractors, as people know them from timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class FeatureInfo(list[dict[str, Any]]):
    """Of every map ``num_chs``, its ``reduction`` of the input's size, and the ``module``."""

    def channels(self) -> list[int]:
        """Channels of the maps."""
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        """Strides of the maps, in space."""
        return [info["reduction"] for info in self]


class Features(nn.Module):
    """A model without its classifiers, for the maps of its stages or layers.

    Args:
        model: the model; loses its classifiers.
        out_indices: which maps, as ``forward_intermediates`` takes them.
    """

    def __init__(self, model: nn.Module, out_indices: Sequence[int] | int | None = None) -> None:
        super().__init__()
        self.out_indices = model.feature_indices(out_indices)
        self.feature_info = FeatureInfo(model.feature_info[index] for index in self.out_indices)
        if model.num_classes:
            model.reset_classifier(0)
        self.model = model
        self.pretrained_cfg = model.pretrained_cfg

    def forward(self, x: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """The maps, ``[B, C, H, W]`` or ``[B, C, T, H, W]``."""
        return self.model.forward_intermediates(x, self.out_indices)[1]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As the model does."""
        self.model.set_grad_checkpointing(enable)
