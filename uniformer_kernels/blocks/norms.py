"""Norms over the channels of channels-last tensors."""

from __future__ import annotations

import torch
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


def near_mean(x: Tensor) -> Tensor:
    """A position's channels, ``[C]``: taken off before squares are summed, they keep the digits.

    Not the running mean: it is far from the batch's at first, where a variance would be lost.
    """
    middle = tuple(size // 2 for size in x.shape[:-1])
    return x.detach()[middle].to(torch.promote_types(x.dtype, torch.float32))


def norm_then(
    x: Tensor,
    norm: BatchNorm,
    layer: Affine,
    moments: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Affine]:
    """A tensor and a layer with ``layer'(x') = layer(batch_norm(x))``; the layer is linear.

    Statistics, running ones or the batch's, go into the layer's weight, so no normalised tensor is
    written or kept; the gradient reaches the batch's through their ``moments``, which may be given
    with the ``shift`` they were taken with.
    """
    layer, norm_affine = layer.as_linear(), (norm.weight, norm.bias)
    if not norm.training:
        statistics = norm.running_mean, norm.running_var
        weight, bias, _ = ops.fold_batch_norm(*layer, *statistics, *norm_affine, eps=norm.eps)
        return x, Affine(weight, bias)
    if x.numel() == 0:
        return batch_norm(x, norm), layer
    if moments is None:
        shift = near_mean(x)
        moments = ops.moments(x, shift=shift)
    weight, bias, found = ops.fold_batch_norm(
        *layer, shift, moments, *norm_affine, count=norm.count(x), eps=norm.eps
    )
    norm.update(found)
    return x, Affine(weight, bias)
