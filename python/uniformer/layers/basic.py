"""Parameters with the official initialisation."""

from __future__ import annotations

from torch import nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MLP_RATIO = 4
BLOCK_EPS = 1e-6  # of LayerNorm in the blocks; stems have PyTorch's 1e-5


def linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer, weight from a normal distribution (std 0.02, cut at ±2), bias 0."""
    layer = nn.Linear(in_features, out_features)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def classifier(dim: int, num_classes: int) -> nn.Module:
    """A linear layer; nothing for no classes."""
    return linear(dim, num_classes) if num_classes else nn.Identity()


def depthwise(dim: int, kernel: int, ndim: int) -> nn.Module:
    """A depthwise convolution that keeps the size."""
    return CONV[ndim](dim, dim, kernel, padding=kernel // 2, groups=dim)


def attention(dim: int) -> nn.ModuleDict:
    """The two linear layers around an attention."""
    return nn.ModuleDict({"qkv": linear(dim, 3 * dim), "proj": linear(dim, dim)})


def mlp(dim: int, ratio: int = MLP_RATIO) -> nn.ModuleDict:
    """The two linear layers of a feed-forward."""
    return nn.ModuleDict({"fc1": linear(dim, ratio * dim), "fc2": linear(ratio * dim, dim)})
