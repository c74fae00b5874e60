"""The global block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniformer_kernels.blocks import Affine, LayerNorm, global_block

from .basic import BLOCK_EPS, attention, depthwise, mlp


class GlobalBlock(nn.Module):
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
        self.drop_path = drop_path
        self.num_heads = dim // head_dim
        for name in ("gamma_1", "gamma_2"):
            gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
            self.register_parameter(name, gamma)
        self.pos_embed = depthwise(dim, 3, ndim)
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attn = attention(dim)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.mlp = mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` to the same."""
        return global_block(
            x,
            dpe=Affine.of(self.pos_embed),
            norm1=LayerNorm.of(self.norm1),
            qkv=Affine.of(self.attn.qkv),
            proj=Affine.of(self.attn.proj),
            norm2=LayerNorm.of(self.norm2),
            fc1=Affine.of(self.mlp.fc1),
            fc2=Affine.of(self.mlp.fc2),
            num_heads=self.num_heads,
            gamma_1=self.gamma_1,
            gamma_2=self.gamma_2,
            drop_path=self.drop_path if self.training else 0.0,
        )
