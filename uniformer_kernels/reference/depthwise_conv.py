"""Depthwise convolution as PyTorch computes it."""

import torch.nn.functional as F
from torch import Tensor


def depthwise_conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: bool = False
) -> Tensor:
    """``conv3d(x, groups=C)`` with 'same' zero padding, on ``[B, T, H, W, C]``."""
    padding = [k // 2 for k in weight.shape[2:]]
    y = F.conv3d(x.movedim(-1, 1), weight, bias, padding=padding, groups=x.shape[-1])
    y = y.movedim(1, -1)
    return x + y if residual else y
