"""The lightweight UniFormer for video: in every hourglass block tokens are sorted and sorted back.

The importance is passed from block to block, where the authors' code has a global variable.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformer_kernels.bench.plain import attention_weights, token_recover, token_shrink, unpacked

from .video import LocalBlock, Mlp, PatchEmbed, depths


class ConvStem(nn.Module):
    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv3d(in_chans, dim // 2, 3, (1, 2, 2), 1),
            nn.BatchNorm3d(dim // 2),
            nn.GELU(),
            nn.Conv3d(dim // 2, dim, 3, (2, 2, 2), 1),
            nn.BatchNorm3d(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class ScoredAttention(nn.Module):
    """Attention, and what the first token pays to the others."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = unpacked(self.qkv(x), self.num_heads)
        weights = attention_weights(q, k)
        y = (weights @ v).transpose(1, 2).flatten(2)
        return self.proj(y), weights[:, :, 0, 1:].mean(1)


class HourglassBlock(nn.Module):
    """Keeps half of the tokens, all while there is no importance yet."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.pos_embed = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = ScoredAttention(dim, num_heads)
        self.mlp = Mlp(dim, 3 * dim)

    def forward(
        self, x: Tensor, score_token: Tensor, importance: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x + self.pos_embed(x)
        shape, x = x.shape, x.flatten(2).transpose(1, 2)
        if importance is None:
            z, _, _, importance = self._layer(torch.cat([score_token, x], 1))
            score_token, x = z[:, :1], z[:, 1:]
        else:
            keep = x.shape[1] // 2
            z, others, importance, position = token_shrink(x, importance, keep, score_token)
            z, u, m, score = self._layer(z)
            kept = 0.5 * importance[:, :keep] + 0.5 * score[:, :-1]
            importance = torch.cat([kept, importance[:, keep:]], 1)
            others = others + (u[:, -1:] + m[:, -1:])
            score_token = z[:, :1]
            x, importance = token_recover(z[:, 1:-1], others, importance, position)
        return x.transpose(1, 2).reshape(shape), score_token, importance

    def _layer(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The new tokens, the two residuals and the score."""
        u, score = self.attn(self.norm1(z))
        z = z + u
        m = self.mlp(self.norm2(z))
        return z + m, u, m, score


class LightUniFormer(nn.Module):
    """UniFormer-XXS, or another lightweight one, for video without drop path."""

    def __init__(
        self,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        head_dim: int,
        num_classes: int = 400,
    ):
        super().__init__()
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            patch = (1, 2, 2), (1, 2, 2), (0, 0, 0)
            stem = PatchEmbed(dims[stage - 1], dim, *patch) if stage else ConvStem(3, dim)
            blocks = (
                LocalBlock(dim, mlp_ratio=3) if stage < 2 else HourglassBlock(dim, dim // head_dim)
                for _ in range(depth)
            )
            self.add_module(f"patch_embed{stage + 1}", stem)
            self.add_module(f"blocks{stage + 1}", nn.Sequential(*blocks))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[2]))
        self.cls_upsample = nn.Linear(dims[2], dims[3])
        self.norm, self.norm_cls = nn.BatchNorm3d(dims[3]), nn.LayerNorm(dims[3])
        self.head, self.head_cls = (nn.Linear(dims[3], num_classes) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.blocks1(self.patch_embed1(x))
        x = self.patch_embed3(self.blocks2(self.patch_embed2(x)))
        state = x, self.cls_token.expand(len(x), -1, -1), None
        for block in self.blocks3:
            state = block(*state)
        x, score_token, importance = state
        pooled = F.avg_pool3d(importance.view(len(x), *x.shape[2:]), (1, 2, 2)).flatten(1)
        importance = pooled * (importance.sum(1, keepdim=True) / pooled.sum(1, keepdim=True))
        state = self.patch_embed4(x), self.cls_upsample(score_token), importance
        for block in self.blocks4:
            state = block(*state)
        x, score_token, _ = state
        logits = self.head(self.norm(x).mean(dim=(2, 3, 4)))
        if not self.training:
            return logits
        return logits, self.head_cls(self.norm_cls(score_token[:, 0]))


def official(state: dict[str, Tensor]) -> nn.Module:
    """The authors' way, with the weights of `state`."""
    dims = tuple(len(state[f"blocks{stage}.0.norm1.weight"]) for stage in range(1, 5))
    model = LightUniFormer(depths(state), dims, dims[0] // 2)
    model.load_state_dict(state)
    return model
