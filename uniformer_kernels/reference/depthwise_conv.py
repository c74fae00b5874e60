"""Depthwise convolution as PyTorch computes it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch_norm import moments


def depthwise_conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: bool = False
) -> Tensor:
    """``conv3d(x, groups=C)`` with 'same' zero padding, on ``[B, T, H, W, C]``."""
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        # oneDNN's bfloat16 weight gradient reads unwritten memory for kernels of five frames.
        wide = x.float(), weight.float(), None if bias is None else bias.float()
        with torch.autocast("cpu", enabled=False):
            return depthwise_conv3d(*wide, residual=residual).to(x.dtype)
    padding = [k // 2 for k in weight.shape[2:]]
    y = F.conv3d(x.movedim(-1, 1), weight, bias, padding=padding, groups=x.shape[-1])
    y = y.movedim(1, -1)
    return x + y if residual else y


def depthwise_conv3d_with_moments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = False,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``depthwise_conv3d``, and the ``moments`` of its result."""
    y = depthwise_conv3d(x, weight, bias, residual=residual)
    return y, moments(y, shift=shift)
