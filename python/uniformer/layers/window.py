"""The global block with attention inside windows."""

from __future__ import annotations

from torch import Tensor

from uniformer_kernels.blocks import layer, window_block

from .basic import layers
from .joint import GlobalBlock


class WindowBlock(GlobalBlock):
    """A ``GlobalBlock`` that attends inside windows.

    ``window_size`` may be set anew at any time, for no parameter depends on it: height and width of
    a window, ``None`` for one window as large as the grid.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int,
        ndim: int,
        window_size: int | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(dim, head_dim=head_dim, ndim=ndim, drop_path=drop_path)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` to the same."""
        if self.window_size is None:
            return super().forward(x)
        qkv, proj = layers(self.attn)
        fc1, fc2 = layers(self.mlp)
        return window_block(
            x,
            dpe=layer(self.pos_embed, self.ndim),
            norm1=layer(self.norm1),
            qkv=qkv,
            proj=proj,
            norm2=layer(self.norm2),
            fc1=fc1,
            fc2=fc2,
            num_heads=self.num_heads,
            window_size=self.window_size,
            drop_path=self.drop_path if self.training else 0.0,
        )
