"""X3D-M's structure (arXiv 2004.04730): bottlenecks around depthwise 3x3x3 convolutions.

Without dropout: both sides of a comparison go without.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(
    in_chans: int,
    out_chans: int,
    kernel: tuple[int, ...] = (1, 1, 1),
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """A convolution of the same size but for its stride over space, and its norm."""
    padding = tuple(k // 2 for k in kernel)
    steps = 1, stride, stride
    conv = nn.Conv3d(in_chans, out_chans, kernel, steps, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(out_chans))


class SqueezeExcitation(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        squeezed = max(8, (dim // 16 + 4) // 8 * 8)
        self.fc1, self.fc2 = nn.Conv3d(dim, squeezed, 1), nn.Conv3d(squeezed, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(F.relu(self.fc1(x.mean((2, 3, 4), keepdim=True))))
        return x * gate.sigmoid()


class Bottleneck(nn.Module):
    def __init__(self, in_chans: int, dim: int, stride: int, excited: bool):
        super().__init__()
        inner = int(2.25 * dim)
        self.conv_a = conv_norm(in_chans, inner)
        self.conv_b = conv_norm(inner, inner, (3, 3, 3), stride, groups=inner)
        self.se = SqueezeExcitation(inner) if excited else nn.Identity()
        self.conv_c = conv_norm(inner, dim)
        same = in_chans == dim and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(in_chans, dim, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.se(self.conv_b(F.relu(self.conv_a(x)))))
        return F.relu(self.shortcut(x) + self.conv_c(y))


class X3D(nn.Module):
    """X3D-M on clips `[B, 3, T, H, W]`."""

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 5, 11, 7),
        dims: tuple[int, ...] = (24, 48, 96, 192),
        num_classes: int = 400,
    ):
        super().__init__()
        space = nn.Conv3d(3, dims[0], (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        time = conv_norm(dims[0], dims[0], (5, 1, 1), groups=dims[0])
        self.stem = nn.Sequential(space, *time, nn.ReLU())
        in_chans, stages = dims[0], []
        for depth, dim in zip(depths, dims, strict=True):
            for index in range(depth):
                stride = 1 if index else 2
                stages.append(Bottleneck(in_chans, dim, stride, excited=index % 2 == 0))
                in_chans = dim
        self.stages = nn.Sequential(*stages)
        widest = int(2.25 * in_chans)
        self.conv5 = nn.Sequential(*conv_norm(in_chans, widest), nn.ReLU())
        self.fc1, self.head = nn.Linear(widest, 2048, bias=False), nn.Linear(2048, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv5(self.stages(self.stem(x))).mean((2, 3, 4))
        return self.head(F.relu(self.fc1(pooled)))
