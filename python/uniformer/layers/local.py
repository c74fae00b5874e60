"""The local block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniformer_kernels.blocks import has_hooks, layer, local_block

from .basic import (
    BATCH_NORM,
    CONV,
    MLP_RATIO,
    Foldable,
    Mlp,
    depthwise,
    fold_norm,
    fold_scale,
    layers,
)


class LocalBlock(Foldable):
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
        self.ndim, self.drop_path = ndim, drop_path
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
        self.mlp = Mlp(dim, mlp_ratio, ndim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` to the same."""
        ndim = self.ndim
        fc1, fc2 = layers(self.mlp, ndim)
        return local_block(
            x,
            dpe=layer(self.pos_embed, ndim),
            norm1=self.norm1 and layer(self.norm1, ndim),
            pw1=layer(self.conv1, ndim),
            dw=layer(self.attn, ndim),
            pw2=layer(self.conv2, ndim),
            norm2=self.norm2 and layer(self.norm2, ndim),
            fc1=fc1,
            fc2=fc2,
            gamma_1=self.gamma_1,
            gamma_2=self.gamma_2,
            drop_path=self.drop_path if self.training else 0.0,
        )

    def fold(self) -> None:
        """Norms and layer scales become parts of the pointwise convolutions."""
        fold_norm(self, "norm1", self.conv1)
        fold_scale(self, "gamma_1", self.conv2)
        if isinstance(self.mlp, Mlp) and not has_hooks(self.mlp):
            fold_norm(self, "norm2", self.mlp.fc1)
            fold_scale(self, "gamma_2", self.mlp, "fc2")
