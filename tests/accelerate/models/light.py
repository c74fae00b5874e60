"""The official lightweight UniFormer: its blocks share two global variables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .official import CBlock, Embedding, Mlp, PatchEmbed, drop_path

global_attn = 0
token_indices = 0


def rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Attention(nn.Module):
    """Updates the importance of the tokens that take part."""

    def __init__(self, dim: int, num_heads: int, trade_off: float):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.trade_off = trade_off
        self.qkv, self.attn_drop = nn.Linear(dim, 3 * dim), nn.Dropout(0.0)
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        global global_attn
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        score, t = weights[:, :, 0].mean(1), self.trade_off
        if isinstance(global_attn, int):
            global_attn = score[:, 1:]
        elif global_attn.shape[1] == N - 1:
            global_attn = (1 - t) * global_attn + t * score[:, 1:]
        else:
            seen = (1 - t) * global_attn[:, : N - 2] + t * score[:, 1:-1]
            global_attn = torch.cat([seen, global_attn[:, N - 2 :]], 1)
        x = (self.attn_drop(weights) @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj_drop(self.proj(x))


class EvoSABlock(nn.Module):
    def __init__(
        self,
        dim: int,
        num_heads: int,
        ratio: float,
        ndim: int = 3,
        downsample: bool = False,
        rate: float = 0.0,
        layer_scale: float = 0.0,
    ):
        super().__init__()
        conv, pool = ((nn.Conv2d, nn.AvgPool2d), (nn.Conv3d, nn.AvgPool3d))[ndim - 2]
        self.pos_embed = conv(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, trade_off=ratio)
        self.drop_path = drop_path(rate)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)
        self.prune_ratio, self.downsample = ratio, downsample
        if downsample:
            self.avgpool = pool((1, 2, 2)[-ndim:])
        self.layer_scale = layer_scale
        if layer_scale:
            self.gamma_1 = nn.Parameter(layer_scale * torch.ones(dim))
            self.gamma_2 = nn.Parameter(layer_scale * torch.ones(dim))

    def forward(self, cls_token: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        global global_attn, token_indices
        g1, g2 = (self.gamma_1, self.gamma_2) if self.layer_scale else (1, 1)
        x = x + self.pos_embed(x)
        shape = x.shape
        x = x.flatten(2).transpose(1, 2)
        if self.prune_ratio == 1:
            z = torch.cat([cls_token, x], 1)
            z = z + self.drop_path(g1 * self.attn(self.norm1(z)))
            z = z + self.drop_path(g2 * self.mlp(self.norm2(z)))
            return z[:, :1], z[:, 1:].transpose(1, 2).reshape(shape)
        B, N, C = x.shape
        keep = int(N * self.prune_ratio)
        order = global_attn.argsort(1, descending=True)
        state = torch.cat([x, global_attn.unsqueeze(-1), token_indices.unsqueeze(-1)], -1)
        state = rows(state, order)
        x, global_attn, token_indices = state[..., :C], state[..., C], state[..., C + 1]
        weight = global_attn[:, keep:] / global_attn[:, keep:].sum(1, keepdim=True)
        others = x[:, keep:]
        representative = (others * weight.unsqueeze(-1)).sum(1, keepdim=True)
        z = torch.cat([cls_token, x[:, :keep], representative], 1)
        u = g1 * self.attn(self.norm1(z))
        z = z + self.drop_path(u)
        m = g2 * self.mlp(self.norm2(z))
        z = z + self.drop_path(m)
        x = torch.cat([z[:, 1:-1], others + (u[:, -1:] + m[:, -1:])], 1)
        total = global_attn.sum(1, keepdim=True)
        state = torch.cat([x, global_attn.unsqueeze(-1), token_indices.unsqueeze(-1)], -1)
        state = rows(state, token_indices.argsort(1))
        x, global_attn, token_indices = state[..., :C], state[..., C], state[..., C + 1]
        if self.downsample:
            grid = global_attn.reshape(B, 1, *shape[2:])
            global_attn = self.avgpool(grid).flatten(1)
            global_attn = global_attn * (total / global_attn.sum(1, keepdim=True))
        return z[:, :1], x.transpose(1, 2).reshape(shape)


class UniFormerLight(nn.Module):
    """Returns both classifiers' logits in training."""

    def __init__(self, ndim: int = 3, num_classes: int = 5, rate: float = 0.0, **options):
        super().__init__()
        patch = (1, 2, 2)[-ndim:]
        self.patch_embed1 = Embedding(3, 8, 16, steps=(1, 2) if ndim == 3 else ())
        self.patch_embed2 = PatchEmbed(16, 24, patch)
        self.patch_embed3 = PatchEmbed(24, 32, patch)
        self.patch_embed4 = PatchEmbed(32, 64, patch)
        self.blocks1 = nn.ModuleList([CBlock(16, ndim, **options)])
        self.blocks2 = nn.ModuleList([CBlock(24, ndim, rate=rate, **options)])
        options["ndim"] = ndim
        self.blocks3 = nn.ModuleList(
            [
                EvoSABlock(32, 4, ratio, downsample=index == 2, rate=rate, **options)
                for index, ratio in enumerate((1, 0.5, 0.5))
            ]
        )
        self.blocks4 = nn.ModuleList([EvoSABlock(64, 4, 0.5, rate=rate, **options)])
        self.cls_token = nn.Parameter(torch.randn(1, 1, 32))
        self.cls_upsample = nn.Linear(32, 64)
        self.norm, self.norm_cls = (nn.BatchNorm2d, nn.BatchNorm3d)[ndim - 2](64), nn.LayerNorm(64)
        self.head, self.head_cls = nn.Linear(64, num_classes), nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        global global_attn, token_indices
        x = self.patch_embed1(x)
        for block in self.blocks1:
            x = block(x)
        x = self.patch_embed2(x)
        for block in self.blocks2:
            x = block(x)
        x = self.patch_embed3(x)
        global_attn, token_indices = 0, positions(x)
        cls_token = self.cls_token.expand(len(x), -1, -1)
        for block in self.blocks3:
            cls_token, x = block(cls_token, x)
        cls_token, x = self.cls_upsample(cls_token), self.patch_embed4(x)
        token_indices = positions(x)
        for block in self.blocks4:
            cls_token, x = block(cls_token, x)
        logits = self.head(self.norm(x).flatten(2).mean(-1))
        if not self.training:
            return logits
        return logits, self.head_cls(self.norm_cls(cls_token[:, 0]))


def positions(x: Tensor) -> Tensor:
    return torch.arange(x[0, 0].numel(), device=x.device).expand(len(x), -1)
