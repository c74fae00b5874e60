"""The global block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniformer_kernels.blocks import global_block, layer

from .basic import BLOCK_EPS, Attention, Foldable, Mlp, depthwise, fold_scale, layers


class GlobalBlock(Foldable):
    """Parameters of ``global_block``, for images (``ndim=2``) or clips (``ndim=3``).

    ``layer_scale`` is what ``gamma_1`` and ``gamma_2`` start from; there are none without it.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int,
        ndim: int,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.ndim, self.drop_path = ndim, drop_path
        self.num_heads = dim // head_dim
        for name in ("gamma_1", "gamma_2"):
            gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
            self.register_parameter(name, gamma)
        self.pos_embed = depthwise(dim, 3, ndim)
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attn = Attention(dim, self.num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` to the same."""
        qkv, proj = layers(self.attn)
        fc1, fc2 = layers(self.mlp)
        return global_block(
            x,
            dpe=layer(self.pos_embed, self.ndim),
            norm1=layer(self.norm1),
            qkv=qkv,
            proj=proj,
            norm2=layer(self.norm2),
            fc1=fc1,
            fc2=fc2,
            num_heads=self.num_heads,
            gamma_1=self.gamma_1,
            gamma_2=self.gamma_2,
            drop_path=self.drop_path if self.training else 0.0,
        )

    def fold(self) -> None:
        """Layer scales become parts of the layers in front of them."""
        fold_scale(self, "gamma_1", self.attn, "proj")
        fold_scale(self, "gamma_2", self.mlp, "fc2")
