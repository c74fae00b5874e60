"""UniFormerV2's global block: keys and values of all tokens for a single query."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .operators import materialised_attention


class GlobalUniBlock(nn.Module):
    """`[1, B, C]` and the tokens of a layer, `[1 + HW, B * T, C]`, to `[1, B, C]`."""

    def __init__(self, dim: int, num_heads: int, num_frames: int, grid: tuple[int, int]):
        super().__init__()
        self.num_heads, self.num_frames, self.grid = num_heads, num_frames, grid
        self.dpe = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.attn = nn.MultiheadAttention(dim, num_heads)  # only its parameters
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(dim) for _ in range(3))
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(dim, 4 * dim), "c_proj": nn.Linear(4 * dim, dim)}
        )

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        query = query + self._attention(self.ln_1(query), self.ln_3(self._memory(x)))
        hidden = self.mlp.c_fc(self.ln_2(query))
        return query + self.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))

    def _memory(self, x: Tensor) -> Tensor:
        """`[T * (1 + HW), B, C]`, with a position encoding added to the patches."""
        (L, _, C), T = x.shape, self.num_frames
        maps = x[1:].view(*self.grid, -1, T, C).permute(2, 4, 3, 0, 1).contiguous()
        maps = maps + self.dpe(maps)
        patches = maps.permute(3, 4, 0, 2, 1).reshape(L - 1, -1, C)
        tokens = torch.cat([x[:1], patches]).view(L, -1, T, C)
        return tokens.permute(2, 0, 1, 3).reshape(T * L, -1, C)

    def _attention(self, query: Tensor, memory: Tensor) -> Tensor:
        parts = zip(
            (query, memory, memory),
            self.attn.in_proj_weight.chunk(3),
            self.attn.in_proj_bias.chunk(3),
            strict=True,
        )
        heads = (F.linear(*part).unflatten(2, (self.num_heads, -1)) for part in parts)
        y = materialised_attention(*(t.permute(1, 2, 0, 3) for t in heads))
        return self.attn.out_proj(y.permute(2, 0, 1, 3).flatten(2))
