"""The hourglass block of the lightweight models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniformer_kernels.blocks import hourglass_block, layer

from .basic import (
    BLOCK_EPS,
    Foldable,
    Mlp,
    ScoredAttention,
    depthwise,
    fold_scale,
    layers,
)


class HourglassBlock(Foldable):
    """Parameters of ``hourglass_block``, for images (``ndim=2``) or clips (``ndim=3``).

    ``score`` says whose attention makes the importance: the score token's (``"token"``) or the
    mean of all tokens' (``"mean"``); ``running_mean`` whether it is averaged with the one before.
    ``layer_scale`` is what ``gamma_1`` and ``gamma_2`` start from; there are none without it.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int,
        ndim: int,
        mlp_ratio: int,
        keep: float,
        score: str,
        running_mean: bool,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.keep, self.score, self.running_mean = keep, score, running_mean
        self.ndim, self.drop_path = ndim, drop_path
        self.num_heads = dim // head_dim
        for name in ("gamma_1", "gamma_2"):
            gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
            self.register_parameter(name, gamma)
        self.pos_embed = depthwise(dim, 3, ndim)
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attn = ScoredAttention(dim, self.num_heads, 1 if score == "token" else None)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(
        self, x: Tensor, score_token: Tensor, importance: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, T, H, W, C]``, ``[B, 1, C]`` and ``[B, T * H * W]`` to the same.

        The importance is ``None`` in front of the first block, which keeps every token.
        """
        qkv, proj = layers(self.attn)
        fc1, fc2 = layers(self.mlp)
        return hourglass_block(
            x,
            score_token,
            importance,
            dpe=layer(self.pos_embed, self.ndim),
            norm1=layer(self.norm1),
            qkv=qkv,
            proj=proj,
            norm2=layer(self.norm2),
            fc1=fc1,
            fc2=fc2,
            num_heads=self.num_heads,
            keep=self.keep,
            trade_off=0.5 if self.running_mean else 1.0,
            queries=self.attn.queries,
            gamma_1=self.gamma_1,
            gamma_2=self.gamma_2,
            drop_path=self.drop_path if self.training else 0.0,
        )

    def fold(self) -> None:
        """Layer scales become parts of the layers in front of them."""
        fold_scale(self, "gamma_1", self.attn, "proj")
        fold_scale(self, "gamma_2", self.mlp, "fc2")
