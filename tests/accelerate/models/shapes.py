"""Other people's models with depthwise convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int = 16):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + self.pwconv2(F.gelu(self.pwconv1(y))).permute(0, 3, 1, 2)


class SeparableVideo(nn.Module):
    """Over space, over time, and with `same` padding; no biases."""

    def __init__(self, dim: int = 16):
        super().__init__()
        options = {"groups": dim, "bias": False}
        self.space = nn.Conv3d(dim, dim, (1, 3, 5), padding=(0, 1, 2), **options)
        self.time = nn.Conv3d(dim, dim, (5, 1, 1), padding="same", **options)
        self.norm = nn.BatchNorm3d(dim)
        self.head = nn.Linear(dim * 3 * 8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.time(self.space(x))), inplace=True)
        return self.head(y.view(len(y), -1))
