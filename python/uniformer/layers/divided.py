"""The global block with attention divided into time and space."""

from __future__ import annotations

from torch import Tensor, nn

from uniformer_kernels.blocks import divided_block, layer

from .basic import BLOCK_EPS, Attention, Mlp, depthwise, layers


class DividedBlock(nn.Module):
    """Parameters of ``divided_block``; the temporal branch is 0 at the start, but can learn."""

    def __init__(self, dim: int, *, head_dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.num_heads = dim // head_dim
        self.pos_embed = depthwise(dim, 3, ndim=3)
        self.t_norm = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.t_attn = Attention(dim, self.num_heads)
        nn.init.zeros_(self.t_attn.qkv.weight)
        nn.init.ones_(self.t_attn.proj.weight)
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attn = Attention(dim, self.num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` to the same."""
        t_qkv, t_proj = layers(self.t_attn)
        qkv, proj = layers(self.attn)
        fc1, fc2 = layers(self.mlp)
        return divided_block(
            x,
            dpe=layer(self.pos_embed, 3),
            t_norm=layer(self.t_norm),
            t_qkv=t_qkv,
            t_proj=t_proj,
            norm1=layer(self.norm1),
            qkv=qkv,
            proj=proj,
            norm2=layer(self.norm2),
            fc1=fc1,
            fc2=fc2,
            num_heads=self.num_heads,
            drop_path=self.drop_path if self.training else 0.0,
        )
