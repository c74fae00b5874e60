"""The global block with attention inside windows."""

from __future__ import annotations

from torch import Tensor

from uniformer_kernels.blocks import Affine, LayerNorm, window_block

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
        return window_block(
            x,
            dpe=Affine.of(self.pos_embed),
            norm1=LayerNorm.of(self.norm1),
            qkv=Affine.of(self.attn.qkv),
            proj=Affine.of(self.attn.proj),
            norm2=LayerNorm.of(self.norm2),
            fc1=Affine.of(self.mlp.fc1),
            fc2=Affine.of(self.mlp.fc2),
            num_heads=self.num_heads,
            window_size=self.window_size,
            drop_path=self.drop_path if self.training else 0.0,
        )
