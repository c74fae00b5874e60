"""Norms over the channels of channels-last tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, scale_shift
from .layers import Called, Layer
from .parameters import Affine, BatchNorm
from .synchronise import synchronise


def batch_norm(x: Tensor, norm: BatchNorm | Called, *, gelu: bool = False) -> Tensor:
    """``nn.BatchNorm3d`` on ``[B, T, H, W, C]``, running statistics and errors included.

    With ``gelu`` the activation is behind it.
    """
    if not isinstance(norm, Called) and norm.group is None and scale_shift.serves(x):
        return _in_one_pass(x, norm, gelu)
    y = norm(x) if isinstance(norm, Called) else _batch_norm(x, norm)
    return F.gelu(y) if gelu else y


def _in_one_pass(x: Tensor, norm: BatchNorm, gelu: bool) -> Tensor:
    if norm.training:
        norm.count(x)  # one value per channel has no variance
    statistics = (near_mean(x), None) if norm.training else (norm.running_mean, norm.running_var)
    y, found = scale_shift.batch_norm(x, norm.weight, norm.bias, *statistics, norm.eps, gelu=gelu)
    if norm.training:
        norm.update(found)
    return y


def _batch_norm(x: Tensor, norm: BatchNorm) -> Tensor:
    if norm.group is not None:
        return _synchronised(x, norm)
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


def _synchronised(x: Tensor, norm: BatchNorm) -> Tensor:
    """The norm as a layer that scales every channel."""
    C = x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    diagonal = Affine(torch.eye(C, dtype=wide, device=x.device), None)
    _, layer = norm_then(x, norm, diagonal)
    return torch.addcmul(layer.bias, x.to(wide), layer.weight.diagonal()).to(x.dtype)


def near_mean(x: Tensor) -> Tensor:
    """A position's channels, ``[C]``: taken off before squares are summed, they keep the digits.

    Not the running mean: it is far from the batch's at first, where a variance would be lost.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.numel() == 0:
        return x.new_zeros(x.shape[-1], dtype=wide)
    middle = tuple(size // 2 for size in x.shape[:-1])
    return x.detach()[middle].to(wide)


def folded(norm: BatchNorm, layer: Affine) -> Affine:
    """The layer that computes ``layer(norm(x))``, by the running statistics; it is linear."""
    statistics, affine = (norm.running_mean, norm.running_var), (norm.weight, norm.bias)
    layer = layer.as_linear()
    return Affine(*ops.fold_batch_norm(*layer[:2], *statistics, *affine, eps=norm.eps)[:2])


def norm_then(
    x: Tensor,
    norm: BatchNorm | Called | None,
    layer: Layer,
    moments: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Layer]:
    """A tensor and a layer with ``layer'(x') = layer(batch_norm(x))``; the layer is linear.

    Statistics, running ones or the batch's, go into the layer's weight, so no normalised tensor is
    written or kept; the gradient reaches the batch's through their ``moments``, which may be given
    with the ``shift`` they were taken with. A norm or a layer that is called gets, and gives, whole
    tensors; no norm changes nothing.
    """
    if norm is None:
        return x, layer
    if isinstance(norm, Called) or isinstance(layer, Called):
        return batch_norm(x, norm), layer
    if not norm.training:
        return x, folded(norm, layer)
    layer, norm_affine = layer.as_linear(), (norm.weight, norm.bias)
    if x.numel() == 0 and norm.group is None:
        return batch_norm(x, norm), layer
    count = norm.count(x)
    if moments is None:
        shift = near_mean(x)
        moments = ops.moments(x, shift=shift)
    if norm.group is not None:
        moments, shift, total = synchronise(moments, shift, math.prod(x.shape[:-1]), norm.group)
        moments = moments * (count / total)  # as if there were so many: their mean is the same
    weight, bias, found = ops.fold_batch_norm(
        *layer[:2], shift, moments, *norm_affine, count=count, eps=norm.eps
    )
    if norm.group is not None:
        mean, var = found  # the variance that is not biased depends on how many there are
        found = torch.stack([mean, var * ((count - 1) / count * total / (total - 1))])
    norm.update(found)
    return x, Affine(weight, bias)
