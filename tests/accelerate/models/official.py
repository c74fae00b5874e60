"""The official image (`ndim=2`) and video (`ndim=3`) UniFormer, and the dense models' windows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class DropPath(nn.Module):
    """A sample's branch, or nothing of it."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.drop_prob or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = (torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) < keep).to(x.dtype)
        return x / keep * mask


def drop_path(rate: float) -> nn.Module:
    return DropPath(rate) if rate else nn.Identity()


class Mlp(nn.Module):
    def __init__(self, dim: int, ndim: int = 0, ratio: int = 2, drop: float = 0.0, act=nn.GELU):
        super().__init__()
        layer = partial(CONV[ndim], kernel_size=1) if ndim else nn.Linear
        self.fc1, self.act = layer(dim, ratio * dim), act()
        self.fc2, self.drop = layer(ratio * dim, dim), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, drop: float = 0.0):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(drop)
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        x = (self.attn_drop(weights) @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj_drop(self.proj(x))


class CBlock(nn.Module):
    def __init__(self, dim: int, ndim: int = 3, rate: float = 0.0, layer_scale: float = 0.0, **mlp):
        super().__init__()
        conv, norm = CONV[ndim], BATCH_NORM[ndim]
        self.pos_embed = conv(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = norm(dim)
        self.conv1, self.conv2 = conv(dim, dim, 1), conv(dim, dim, 1)
        self.attn = conv(dim, dim, 5, padding=2, groups=dim)
        self.drop_path = drop_path(rate)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, ndim, **mlp)
        self.layer_scale = layer_scale
        if layer_scale:
            for name in ("gamma_1", "gamma_2"):
                gamma = layer_scale * torch.ones(1, dim, *[1] * ndim)
                self.register_parameter(name, nn.Parameter(gamma))

    def forward(self, x: Tensor) -> Tensor:
        g1, g2 = (self.gamma_1, self.gamma_2) if self.layer_scale else (1, 1)
        x = x + self.pos_embed(x)
        x = x + self.drop_path(g1 * self.conv2(self.attn(self.conv1(self.norm1(x)))))
        return x + self.drop_path(g2 * self.mlp(self.norm2(x)))


class SABlock(nn.Module):
    def __init__(
        self,
        dim: int,
        num_heads: int = 2,
        ndim: int = 3,
        rate: float = 0.0,
        layer_scale: float = 0.0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        **mlp,
    ):
        super().__init__()
        self.pos_embed = CONV[ndim](dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias, attn_drop)
        self.drop_path = drop_path(rate)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, **mlp)
        self.layer_scale = layer_scale
        if layer_scale:
            for name in ("gamma_1", "gamma_2"):
                self.register_parameter(name, nn.Parameter(layer_scale * torch.ones(dim)))

    def forward(self, x: Tensor) -> Tensor:
        g1, g2 = (self.gamma_1, self.gamma_2) if self.layer_scale else (1, 1)
        x = x + self.pos_embed(x)
        shape = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = x + self.drop_path(g1 * self.attn(self.norm1(x)))
        x = x + self.drop_path(g2 * self.mlp(self.norm2(x)))
        return x.transpose(1, 2).reshape(shape)


class SplitSABlock(SABlock):
    """Attention over time, then over space."""

    def __init__(self, dim: int, num_heads: int = 2, **options):
        super().__init__(dim, num_heads, **options)
        self.t_norm = nn.LayerNorm(dim, eps=1e-6)
        self.t_attn = Attention(dim, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        B, C, T, H, W = x.shape
        attn = x.view(B, C, T, H * W).permute(0, 3, 2, 1).reshape(B * H * W, T, C)
        attn = attn + self.drop_path(self.t_attn(self.t_norm(attn)))
        attn = attn.view(B, H * W, T, C).transpose(1, 2).reshape(B * T, H * W, C)
        x = x.permute(0, 2, 3, 4, 1).reshape(B * T, H * W, C)
        x = x + self.drop_path(self.attn(self.norm1(attn)))
        x = x.view(B, T * H * W, C)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.transpose(1, 2).reshape(B, C, T, H, W)


class WindowSABlock(SABlock):
    """Attention inside windows; zeros fill up the last ones, behind the norm."""

    def __init__(self, dim: int, num_heads: int = 2, window_size: int = 3, **options):
        super().__init__(dim, num_heads, ndim=2, **options)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.pos_embed(x)).permute(0, 2, 3, 1)
        B, H, W, C = x.shape
        p = self.window_size
        y = F.pad(self.norm1(x), (0, 0, 0, -W % p, 0, -H % p))
        down, across = y.shape[1] // p, y.shape[2] // p
        y = y.view(B, down, p, across, p, C).transpose(2, 3).reshape(-1, p * p, C)
        y = self.attn(y).view(B, down, across, p, p, C).transpose(2, 3)
        y = y.reshape(B, down * p, across * p, C)[:, :H, :W]
        x = x + self.drop_path(y)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """The image model's asserts its size when there is an `img_size`."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
        padding: Sequence[int] | int = 0,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = CONV[len(kernel)](in_chans, dim, kernel, stride or kernel, padding)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        y = self.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return y.reshape(len(y), -1, *x.shape[2:]).contiguous()


class SizedPatchEmbed(PatchEmbed):
    def __init__(self, img_size: int, *args):
        super().__init__(*args)
        self.img_size = img_size, img_size

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == self.img_size
        return super().forward(x)


class Embedding(nn.Module):
    """Overlapping convolutions with norms."""

    def __init__(self, in_chans: int, *dims: int, steps: Sequence[int] = ()):
        super().__init__()
        ndim, layers = 3 if steps else 2, []
        for index, dim in enumerate(dims):
            stride = (*steps[index : index + 1], 2, 2)
            layers += [CONV[ndim](in_chans, dim, 3, stride, 1), BATCH_NORM[ndim](dim), nn.GELU()]
            in_chans = dim
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class UniFormer(nn.Module):
    """All of it, small; `ndim=2` makes the image model with a convolutional stem."""

    def __init__(self, ndim: int = 3, rate: float = 0.0, num_classes: int = 5, **options):
        super().__init__()
        dims = 16, 24, 32, 64
        if ndim == 3:
            self.patch_embed1 = PatchEmbed(3, dims[0], (3, 4, 4), (2, 4, 4), (1, 0, 0))
        else:
            self.patch_embed1 = Embedding(3, dims[0] // 2, dims[0])
        patch = (1, 2, 2)[-ndim:]
        for number, dim in enumerate(dims[1:], 2):
            setattr(self, f"patch_embed{number}", PatchEmbed(dims[number - 2], dim, patch))
        self.pos_drop = nn.Dropout(0.0)
        rates = [rate * index / 4 for index in range(5)]
        local, joint = (partial(block, ndim=ndim, **options) for block in (CBlock, SABlock))
        self.blocks1 = nn.ModuleList([local(dims[0], rate=rates[0])])
        self.blocks2 = nn.ModuleList([local(dims[1], rate=rates[1])])
        self.blocks3 = nn.ModuleList([joint(dims[2], rate=r) for r in rates[2:4]])
        self.blocks4 = nn.ModuleList([joint(dims[3], rate=rates[4])])
        self.norm = BATCH_NORM[ndim](dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_drop(self.patch_embed1(x))
        for block in self.blocks1:
            x = block(x)
        for number in "234":
            x = getattr(self, f"patch_embed{number}")(x)
            for block in getattr(self, f"blocks{number}"):
                x = block(x)
        return self.head(self.norm(x).flatten(2).mean(-1))
