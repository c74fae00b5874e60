"""The official UniFormerV2, tokens first, and what mmaction2 does otherwise."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .official import drop_path


class LayerNorm(nn.LayerNorm):
    """Computes in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def mlp(dim: int, dropout: float | None = None) -> nn.Sequential:
    layers = {"c_fc": nn.Linear(dim, 4 * dim), "gelu": QuickGELU()}
    if dropout is not None:
        layers["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(OrderedDict(layers, c_proj=nn.Linear(4 * dim, dim)))


class LocalMHRA(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        reduced = int(dim // 1.5)
        self.pos_embed = nn.Sequential(
            nn.BatchNorm3d(dim),
            nn.Conv3d(dim, reduced, 1),
            nn.Conv3d(reduced, reduced, (3, 1, 1), padding=(1, 0, 0), groups=reduced),
            nn.Conv3d(reduced, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pos_embed(x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, dim: int, heads: int, lmhra: int = 2, rate: float = 0.0, norm=LayerNorm):
        super().__init__()
        self.drop_path = drop_path(rate)
        if lmhra:
            self.lmhra1 = LocalMHRA(dim)
        if lmhra == 2:
            self.lmhra2 = LocalMHRA(dim)
        self.lmhra = lmhra
        self.attn = nn.MultiheadAttention(dim, heads)
        self.ln_1, self.ln_2 = norm(dim), norm(dim)
        self.mlp = mlp(dim)

    def attention(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]

    def aggregate(self, x: Tensor, lmhra: nn.Module, T: int) -> Tensor:
        patches = x[1:]
        L, NT, C = patches.shape
        side = int(L**0.5)
        maps = patches.view(side, side, NT // T, T, C).permute(2, 4, 3, 0, 1).contiguous()
        maps = maps + self.drop_path(lmhra(maps))
        maps = maps.view(NT // T, C, T, L).permute(3, 0, 2, 1).contiguous().view(L, NT, C)
        return torch.cat([x[:1], maps])

    def forward(self, x: Tensor, T: int = 8, use_checkpoint: bool = False) -> Tensor:
        if self.lmhra:
            x = self.aggregate(x, self.lmhra1, T)
        y = self.ln_1(x)
        y = (
            checkpoint(self.attention, y, use_reentrant=False)
            if use_checkpoint
            else self.attention(y)
        )
        x = x + self.drop_path(y)
        if self.lmhra == 2:
            x = self.aggregate(x, self.lmhra2, T)
        return x + self.drop_path(self.mlp(self.ln_2(x)))


class Extractor(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float = 0.0, rate: float = 0.0):
        super().__init__()
        self.drop_path = drop_path(rate)
        self.attn = nn.MultiheadAttention(dim, heads)
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(dim) for _ in range(3))
        self.mlp = mlp(dim, dropout)

    def attention(self, x: Tensor, y: Tensor) -> Tensor:
        return self.attn(x, y, y, need_weights=False)[0]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.ln_1(x), self.ln_3(y)))
        return x + self.drop_path(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """Two layers, each with a global block behind it, on `[1 + HW, B * T, C]`."""

    def __init__(
        self, dim: int = 32, heads: int = 2, lmhra: int = 2, rate: float = 0.0, norm=LayerNorm
    ):
        super().__init__()
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(dim, heads, lmhra, rate, norm) for _ in range(2)
        )
        self.dpe = nn.ModuleList(nn.Conv3d(dim, dim, 3, padding=1, groups=dim) for _ in range(2))
        self.dec = nn.ModuleList(Extractor(dim, heads, rate=rate) for _ in range(2))
        self.temporal_cls_token = nn.Parameter(torch.randn(1, 1, dim))

    def forward(self, x: Tensor, T: int) -> Tensor:
        L, NT, C = x.shape
        N, side = NT // T, int((L - 1) ** 0.5)
        token = self.temporal_cls_token.repeat(1, N, 1)
        for block, dpe, dec in zip(self.resblocks, self.dpe, self.dec, strict=True):
            x = block(x, T)
            y = x.view(L, N, T, C)
            maps = y[1:].reshape(side, side, N, T, C).permute(2, 4, 3, 0, 1).contiguous()
            encoded = dpe(maps).view(N, C, T, L - 1).permute(3, 0, 2, 1).contiguous()
            y = torch.cat([y[:1], y[1:] + encoded]).permute(2, 0, 1, 3).flatten(0, 1)
            token = dec(token, y)
        return token.squeeze(0)
