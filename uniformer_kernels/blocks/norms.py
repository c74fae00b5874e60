"""Norms over the channels of channels-last tensors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .parameters import Affine, BatchNorm, LayerNorm


def layer_norm(x: Tensor, norm: LayerNorm) -> Tensor:
    """LayerNorm over the last axis of ``[..., C]``."""
    return ops.layer_norm(x, norm.weight, norm.bias, eps=norm.eps)


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


def norm_then(
    x: Tensor, norm: BatchNorm, layer: Affine, moments: Tensor | None = None
) -> tuple[Tensor, Affine]:
    """A tensor and a layer with ``layer'(x') = layer(batch_norm(x))``; the layer is linear.

    Statistics, running ones or the batch's, go into the layer's weight, so no normalised tensor is
    written or kept; the gradient reaches the batch's through their ``moments``, which may be given.
    """
    layer = layer.as_linear()
    if not norm.training:
        return x, layer.scale_input(*norm.scale_shift())
    if x.numel() == 0:
        return batch_norm(x, norm), layer
    if moments is None:
        moments = ops.moments(x, shift=norm.shift(x))
    return x, layer.scale_input(*norm.batch_scale_shift(moments, x.shape))
