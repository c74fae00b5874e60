"""Norms over the channels of channels-last tensors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .parameters import Affine, BatchNorm, LayerNorm


def layer_norm(x: Tensor, norm: LayerNorm) -> Tensor:
    """LayerNorm over the last axis of ``[..., C]``."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def batch_norm(x: Tensor, norm: BatchNorm) -> Tensor:
    """``nn.BatchNorm3d`` on ``[B, T, H, W, C]``, running statistics and errors included."""
    # A view: PyTorch computes it in the channels-last memory format, and keeps that.
    return F.batch_norm(
        x.movedim(-1, 1),
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        norm.momentum,
        norm.eps,
    ).movedim(1, -1)


def norm_then(x: Tensor, norm: BatchNorm, layer: Affine) -> tuple[Tensor, Affine]:
    """A tensor and a layer with ``layer'(x') = layer(batch_norm(x))``; the layer is linear.

    Running statistics go into the layer's weight, so no normalised tensor is written; batch
    statistics are applied to ``x``.
    """
    layer = layer.as_linear()
    if norm.training:
        return batch_norm(x, norm), layer
    return x, layer.scale_input(*norm.scale_shift())
