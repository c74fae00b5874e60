"""The detection backbone, small, with fused attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .video import Attention, Mlp


class Stem(nn.Module):
    def __init__(self, in_chans: int, dim: int, patch: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class Local(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
        self.conv1, self.conv2 = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Conv2d(dim, 4 * dim, 1), "fc2": nn.Conv2d(4 * dim, dim, 1)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.conv2(self.attn(self.conv1(self.norm1(x))))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Global(nn.Module):
    """With a window, on copies of the windows of the padded map."""

    def __init__(self, dim: int, window: int | None):
        super().__init__()
        self.window_size = window
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, dim // 64, F.scaled_dot_product_attention)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.pos_embed(x)).permute(0, 2, 3, 1)
        B, H, W, C = x.shape
        y, p = self.norm1(x), self.window_size
        if p is None:
            y = self.attn(y.reshape(B, H * W, C)).view(B, H, W, C)
        else:
            y = F.pad(y, (0, 0, 0, -W % p, 0, -H % p))
            down, across = y.shape[1] // p, y.shape[2] // p
            y = y.view(B, down, p, across, p, C).transpose(2, 3)
            y = self.attn(y.reshape(-1, p * p, C)).view(B, down, across, p, p, C)
            y = y.transpose(2, 3).reshape(B, down * p, across * p, C)[:, :H, :W]
        x = x + y
        return (x + self.mlp(self.norm2(x))).permute(0, 3, 1, 2).contiguous()


class DenseUniFormer(nn.Module):
    """`uniformer_dense_small` with hybrid attention, windows of 14."""

    def __init__(self, dims: tuple[int, ...] = (64, 128, 320, 512)):
        super().__init__()
        blocks = [
            [Local(dims[0]) for _ in range(3)],
            [Local(dims[1]) for _ in range(4)],
            [Global(dims[2], None if number % 4 == 0 else 14) for number in range(1, 9)],
            [Global(dims[3], None) for _ in range(3)],
        ]
        for stage, (dim, stage_blocks) in enumerate(zip(dims, blocks, strict=True), 1):
            stem = Stem(dims[stage - 2], dim, 2) if stage > 1 else Stem(3, dim, 4)
            self.add_module(f"patch_embed{stage}", stem)
            self.add_module(f"blocks{stage}", nn.Sequential(*stage_blocks))
            self.add_module(f"norm{stage}", nn.LayerNorm(dim, eps=1e-6))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for stage in range(1, 5):
            stem, blocks, norm = (
                self.get_submodule(f"{name}{stage}") for name in ("patch_embed", "blocks", "norm")
            )
            x = blocks(stem(x))
            maps.append(norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous())
        return tuple(maps)


def official(state: dict[str, Tensor]) -> nn.Module:
    """The authors' way but for fused attention, with the weights of `state`."""
    model = DenseUniFormer()
    model.load_state_dict(state)
    return model
