"""The backbone of a detector, under a feature pyramid: python examples/detection.py"""

import sys

import torch
import torch.nn.functional as F
import uniformer
from torch import Tensor, nn


class Pyramid(nn.Module):
    """A feature pyramid over a dense model (Lin et al., CVPR 2017)."""

    def __init__(self, backbone: nn.Module, dim: int = 256) -> None:
        super().__init__()
        self.backbone = backbone
        channels = backbone.feature_info.channels()
        self.lateral = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.lateral, self.backbone(images), strict=True)]
        for fine, coarse in ((2, 3), (1, 2), (0, 1)):
            maps[fine] = maps[fine] + F.interpolate(maps[coarse], maps[fine].shape[2:])
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


def main(height: int = 416, width: int = 608) -> list[Tensor]:
    # Windows in stage 3, but for every fourth block: the official hybrid for large images.
    backbone = uniformer.create_model("uniformer_dense_small", attention="hybrid", norm_eval=True)
    maps = Pyramid(backbone).eval()(torch.randn(1, 3, height, width))
    for stride, x in zip(backbone.feature_info.reduction(), maps, strict=True):
        print(f"stride {stride}:", list(x.shape))
    return maps


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
