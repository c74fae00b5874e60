"""UniFormer for images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from ..layers import ConvStem, GlobalBlock, LocalBlock, PatchStem
from ..registry import register
from .base import DIMS, UniFormer


@register(
    uniformer_small={"depths": (3, 4, 8, 3)},
    uniformer_small_plus={"depths": (3, 5, 9, 3), "head_dim": 32, "conv_stem": True},
    uniformer_small_plus_dim64={"depths": (3, 5, 9, 3), "conv_stem": True},
    uniformer_base={"depths": (5, 8, 20, 7)},
    uniformer_base_ls={"depths": (5, 8, 20, 7), "layer_scale": 1e-6},
)
class ImageUniFormer(UniFormer):
    """UniFormer on images ``[B, in_chans, H, W]`` (TPAMI 2023, section 3 and table 1).

    Args:
        depths: blocks of the four stages: two local, two global ones.
        head_dim: channels of an attention head. It leaves no trace in a checkpoint: load weights
            into the model they were trained in.
        conv_stem: overlapping convolutions with BatchNorm in place of patches with LayerNorm.
        layer_scale: what the layer scales of the global blocks start from, ``None`` for none.
        local_layer_scale: the same for the local blocks.
        dims: channels of the four stages.
        in_chans: channels of the input.
        num_classes: outputs of the head; 0 leaves the pooled features.
        drop_path_rate: stochastic depth of the last block; it rises evenly from 0 at the first.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        head_dim: int = 64,
        conv_stem: bool = False,
        layer_scale: float | None = None,
        local_layer_scale: float | None = None,
        dims: Sequence[int] = DIMS,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
    ) -> None:
        def stem(dim_in: int, dim: int, patch: int) -> nn.Module:
            if not conv_stem:
                return PatchStem(dim_in, dim, kernel=(patch, patch), stride=(patch, patch))
            return ConvStem(dim_in, dim // 2, dim) if patch == 4 else ConvStem(dim_in, dim)

        super().__init__(
            [stem(*sizes) for sizes in zip((in_chans, *dims[:3]), dims, (4, 2, 2, 2), strict=True)],
            partial(LocalBlock, ndim=2, layer_scale=local_layer_scale),
            partial(GlobalBlock, head_dim=head_dim, ndim=2, layer_scale=layer_scale),
            depths=depths,
            axes="HW",
            in_chans=in_chans,
            num_classes=num_classes,
            drop_path_rate=drop_path_rate,
            dims=dims,
        )
