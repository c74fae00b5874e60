"""The local block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniformer_kernels.blocks import Affine, BatchNorm, local_block

from .basic import BATCH_NORM, CONV, MLP_RATIO, depthwise


class LocalBlock(nn.Module):
    """Parameters of ``local_block``, for images (``ndim=2``) or clips (``ndim=3``).

    The official names hide that ``attn`` is the depthwise convolution of the branch, and
    ``conv1``, ``conv2`` the pointwise ones around it. ``layer_scale`` is what ``gamma_1`` and
    ``gamma_2`` start from; there are none without it.
    """

    def __init__(
        self,
        dim: int,
        *,
        ndim: int,
        mlp_ratio: int = MLP_RATIO,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        conv, batch_norm = CONV[ndim], BATCH_NORM[ndim]
        self.drop_path = drop_path
        for name in ("gamma_1", "gamma_2"):
            shape = (1, dim, *[1] * ndim)
            gamma = None if layer_scale is None else nn.Parameter(torch.full(shape, layer_scale))
            self.register_parameter(name, gamma)
        self.pos_embed = depthwise(dim, 3, ndim)
        self.norm1 = batch_norm(dim)
        self.conv1 = conv(dim, dim, 1)
        self.conv2 = conv(dim, dim, 1)
        self.attn = depthwise(dim, 5, ndim)
        self.norm2 = batch_norm(dim)
        hidden = mlp_ratio * dim
        self.mlp = nn.ModuleDict({"fc1": conv(dim, hidden, 1), "fc2": conv(hidden, dim, 1)})

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` to the same."""
        return local_block(
            x,
            dpe=Affine.of(self.pos_embed),
            norm1=BatchNorm.of(self.norm1),
            pw1=Affine.of(self.conv1),
            dw=Affine.of(self.attn),
            pw2=Affine.of(self.conv2),
            norm2=BatchNorm.of(self.norm2),
            fc1=Affine.of(self.mlp.fc1),
            fc2=Affine.of(self.mlp.fc2),
            gamma_1=self.gamma_1,
            gamma_2=self.gamma_2,
            drop_path=self.drop_path if self.training else 0.0,
        )
