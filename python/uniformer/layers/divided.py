"""The global block with attention divided into time and space."""

from __future__ import annotations

from torch import Tensor, nn

from uniformer_kernels.blocks import Affine, LayerNorm, divided_block

from .basic import BLOCK_EPS, attention, depthwise, mlp


class DividedBlock(nn.Module):
    """Parameters of ``divided_block``; the temporal branch is 0 at the start, but can learn."""

    def __init__(self, dim: int, *, head_dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.num_heads = dim // head_dim
        self.pos_embed = depthwise(dim, 3, ndim=3)
        self.t_norm = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.t_attn = attention(dim)
        nn.init.zeros_(self.t_attn.qkv.weight)
        nn.init.ones_(self.t_attn.proj.weight)
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attn = attention(dim)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.mlp = mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` to the same."""
        return divided_block(
            x,
            dpe=Affine.of(self.pos_embed),
            t_norm=LayerNorm.of(self.t_norm),
            t_qkv=Affine.of(self.t_attn.qkv),
            t_proj=Affine.of(self.t_attn.proj),
            norm1=LayerNorm.of(self.norm1),
            qkv=Affine.of(self.attn.qkv),
            proj=Affine.of(self.attn.proj),
            norm2=LayerNorm.of(self.norm2),
            fc1=Affine.of(self.mlp.fc1),
            fc2=Affine.of(self.mlp.fc2),
            num_heads=self.num_heads,
            drop_path=self.drop_path if self.training else 0.0,
        )
