"""UniFormer for video.

`official` is UniFormer-S as its authors' code runs it: maps `[B, C, T, H, W]`, softmax written out.
`best` is the same with the two improvements PyTorch offers for nothing:
`scaled_dot_product_attention` and channels-last maps, where tokens are a view; `compiled` gives
that to Inductor, for inference with frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from torch import Tensor, nn

from uniformer_kernels.bench.plain import Attend, materialised_attention, packed_attention


class PatchEmbed(nn.Module):
    def __init__(self, in_chans: int, dim: int, kernel: tuple, stride: tuple, padding: tuple):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Conv3d(in_chans, dim, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        B, C, T, H, W = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(B, C, T, H, W)


class ConvMlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv3d(dim, hidden, 1), nn.Conv3d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LocalBlock(nn.Module):
    def __init__(self, dim: int, mlp_ratio: int = 4):
        super().__init__()
        self.pos_embed = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.BatchNorm3d(dim), nn.BatchNorm3d(dim)
        self.conv1, self.conv2 = nn.Conv3d(dim, dim, 1), nn.Conv3d(dim, dim, 1)
        self.attn = nn.Conv3d(dim, dim, 5, padding=2, groups=dim)
        self.mlp = ConvMlp(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.conv2(self.attn(self.conv1(self.norm1(x))))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, attend: Attend):
        super().__init__()
        self.num_heads, self.attend = num_heads, attend
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(packed_attention(self.qkv(x), self.num_heads, self.attend))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GlobalBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, attend: Attend):
        super().__init__()
        self.pos_embed = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, attend)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        B, C, T, H, W = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attn(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(B, C, T, H, W)


class UniFormer(nn.Module):
    """UniFormer for video without drop path (both sides of a comparison go without)."""

    def __init__(
        self,
        attend: Attend = materialised_attention,
        depths: tuple[int, ...] = (3, 4, 8, 3),
        dims: tuple[int, ...] = (64, 128, 320, 512),
        num_classes: int = 400,
    ):
        super().__init__()
        stems = [((3, 4, 4), (2, 4, 4), (1, 0, 0)), *[((1, 2, 2), (1, 2, 2), (0, 0, 0))] * 3]
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            block = (
                partial(LocalBlock, dim)
                if stage < 2
                else partial(GlobalBlock, dim, dim // 64, attend)
            )
            in_chans = dims[stage - 1] if stage else 3
            self.add_module(f"patch_embed{stage + 1}", PatchEmbed(in_chans, dim, *stems[stage]))
            self.add_module(f"blocks{stage + 1}", nn.Sequential(*(block() for _ in range(depth))))
        self.norm = nn.BatchNorm3d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in "1234":
            x = getattr(self, f"patch_embed{stage}")(x)
            x = getattr(self, f"blocks{stage}")(x)
        return self.head(self.norm(x).mean(dim=(2, 3, 4)))


def depths(state: dict[str, Tensor]) -> tuple[int, ...]:
    """The blocks of every stage of a model with these weights."""
    blocks = {tuple(name.split(".")[:2]) for name in state if name.startswith("blocks")}
    return tuple(sum(stage == f"blocks{number}" for stage, _ in blocks) for number in range(1, 5))


def official(state: dict[str, Tensor]) -> nn.Module:
    """The authors' way, with the weights of `state`."""
    model = UniFormer(depths=depths(state))
    model.load_state_dict(state)
    return model


def best(state: dict[str, Tensor]) -> nn.Module:
    """Eager PyTorch at its fastest, with the weights of `state`; give it channels-last clips."""
    model = UniFormer(F.scaled_dot_product_attention, depths(state))
    model.load_state_dict(state)
    return model.to(memory_format=torch.channels_last_3d)


def compiled(model: nn.Module, **options: Any) -> Callable[[Tensor], Tensor]:
    """`model` compiled for inference by Inductor, weights frozen into the code."""
    code = torch.compile(model.eval(), options={"freezing": True, **options})

    def run(x: Tensor) -> Tensor:
        # Freezing is also looked up while tracing, which is at the first call.
        with torch.no_grad(), inductor.patch(freezing=True):
            return code(x)

    return run
