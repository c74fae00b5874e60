"""UniFormerV2: tokens first, `[1 + HW, B * T, C]`, copied to maps and back for the convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformer_kernels.bench.plain import Attend, materialised_attention


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def to_maps(x: Tensor, num_frames: int) -> Tensor:
    """The patches of square frames as `[B, C, T, H, W]`."""
    side = isqrt(x.shape[0] - 1)
    maps = x[1:].view(side, side, -1, num_frames, x.shape[2])
    return maps.permute(2, 4, 3, 0, 1).contiguous()


def to_tokens(x: Tensor, maps: Tensor) -> Tensor:
    """`x` with other patches."""
    patches = maps.permute(3, 4, 0, 2, 1).reshape(-1, *x.shape[1:])
    return torch.cat([x[:1], patches])


def video_memory(x: Tensor, dpe: nn.Module, num_frames: int) -> Tensor:
    """`[T * (1 + HW), B, C]`, with a position encoding added to the patches."""
    maps = to_maps(x, num_frames)
    tokens = to_tokens(x, maps + dpe(maps)).unflatten(1, (-1, num_frames))
    return tokens.permute(2, 0, 1, 3).flatten(0, 1)


def depthwise(dim: int) -> nn.Module:
    return nn.Conv3d(dim, dim, 3, padding=1, groups=dim)


def mlp(dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({"c_fc": nn.Linear(dim, 4 * dim), "c_proj": nn.Linear(4 * dim, dim)})


class TemporalAggregator(nn.Module):
    def __init__(self, dim: int, reduced: int):
        super().__init__()
        self.pos_embed = nn.Sequential(
            nn.BatchNorm3d(dim),
            nn.Conv3d(dim, reduced, 1),
            nn.Conv3d(reduced, reduced, (3, 1, 1), padding=(1, 0, 0), groups=reduced),
            nn.Conv3d(reduced, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pos_embed(x)


class LocalUniBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, num_frames: int, reduced: int):
        super().__init__()
        self.num_frames = num_frames
        self.lmhra1, self.lmhra2 = (TemporalAggregator(dim, reduced) for _ in range(2))
        self.attn = nn.MultiheadAttention(dim, num_heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self._aggregate(x, self.lmhra1)
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        x = self._aggregate(x, self.lmhra2)
        return x + self.mlp.c_proj(quick_gelu(self.mlp.c_fc(self.ln_2(x))))

    def _aggregate(self, x: Tensor, lmhra: nn.Module) -> Tensor:
        maps = to_maps(x, self.num_frames)
        return to_tokens(x, maps + lmhra(maps))


class GlobalUniBlock(nn.Module):
    """`[1, B, C]` and the memory of a layer to `[1, B, C]`."""

    def __init__(self, dim: int, num_heads: int, attend: Attend = materialised_attention):
        super().__init__()
        self.num_heads, self.attend = num_heads, attend
        self.attn = nn.MultiheadAttention(dim, num_heads)  # only its parameters
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(dim) for _ in range(3))
        self.mlp = mlp(dim)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        query = query + self._attention(self.ln_1(query), self.ln_3(memory))
        return query + self.mlp.c_proj(quick_gelu(self.mlp.c_fc(self.ln_2(query))))

    def _attention(self, query: Tensor, memory: Tensor) -> Tensor:
        parts = zip(
            (query, memory, memory),
            self.attn.in_proj_weight.chunk(3),
            self.attn.in_proj_bias.chunk(3),
            strict=True,
        )
        heads = (F.linear(*part).unflatten(2, (self.num_heads, -1)) for part in parts)
        y = self.attend(*(t.permute(1, 2, 0, 3) for t in heads))
        return self.attn.out_proj(y.permute(2, 0, 1, 3).flatten(2))


class VideoTransformer(nn.Module):
    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_frames: int,
        reduced: int,
        depth: int,
        return_layers: Sequence[int],
        num_classes: int,
    ):
        super().__init__()
        self.num_frames, self.return_layers = num_frames, tuple(return_layers)
        self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.balance = nn.Parameter(torch.zeros(dim))
        self.resblocks = nn.ModuleList(
            LocalUniBlock(dim, num_heads, num_frames, reduced) for _ in range(depth)
        )
        self.dpe = nn.ModuleList(depthwise(dim) for _ in self.return_layers)
        self.dec = nn.ModuleList(
            GlobalUniBlock(dim, num_heads, F.scaled_dot_product_attention)
            for _ in self.return_layers
        )
        self.proj = nn.Sequential(nn.LayerNorm(dim), nn.Dropout(0.5), nn.Linear(dim, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        T = self.num_frames
        query = self.temporal_cls_token.expand(-1, x.shape[1] // T, -1)
        gathering = dict(zip(self.return_layers, zip(self.dpe, self.dec, strict=True), strict=True))
        for layer, block in enumerate(self.resblocks):
            x = block(x)
            if layer in gathering:
                dpe, dec = gathering[layer]
                query = dec(query, video_memory(x, dpe, T))
        share = self.balance.sigmoid()
        return self.proj((1 - share) * query[0] + share * x[0].unflatten(0, (-1, T)).mean(1))


class UniFormerV2(nn.Module):
    """UniFormerV2-B/16 as for Something-Something: half as many frames inside as come in."""

    def __init__(self, num_frames: int = 16, resolution: int = 224, num_classes: int = 174):
        super().__init__()
        dim, patch = 768, 16
        self.class_embedding = nn.Parameter(torch.empty(dim))
        self.positional_embedding = nn.Parameter(torch.empty(1 + (resolution // patch) ** 2, dim))
        self.conv1 = nn.Conv3d(3, dim, (3, patch, patch), (2, patch, patch), (1, 0, 0), bias=False)
        self.ln_pre = nn.LayerNorm(dim)
        self.transformer = VideoTransformer(
            dim, 12, num_frames // 2, 512, 12, range(4, 12), num_classes
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        patches = x.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)
        classes = self.class_embedding.expand(len(patches), 1, -1)
        x = self.ln_pre(torch.cat([classes, patches], 1) + self.positional_embedding)
        return self.transformer(x.transpose(0, 1))


def official(state: dict[str, Tensor]) -> nn.Module:
    """The authors' way but for fused attention, with the weights of `state`."""
    model = UniFormerV2()
    model.load_state_dict(state)
    return model
