"""What stands before a stage's blocks: a smaller grid with more channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import onednn
from ..backends import needs_grad
from ..ops import patch_embed
from .layers import Called, Layer, layer_norm
from .norms import batch_norm
from .parameters import BatchNorm, LayerNorm


def patch_stem(
    x: Tensor,
    *,
    proj: Layer,
    norm: LayerNorm | Called,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """``LayerNorm(conv(x))``, mostly with kernel = stride.

    Args:
        x: ``[B, T, H, W, C]``, floating, in any memory layout.
        proj: convolution, ``[C', C, kh, kw]`` or ``[C', C, kt, kh, kw]``.
        norm: LayerNorm over ``C'``.
        stride, padding: of the convolution, two or three numbers like its kernel.

    Returns:
        ``[B, T', H', W', C']`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what ``patch_embed`` raises for a shape or dtype that does not fit.
    """
    if isinstance(proj, Called) or isinstance(norm, Called):
        return layer_norm(_convolution(x, proj, stride, padding), norm)
    if proj.weight.dim() == 4:
        stride, padding = (1, *stride), (0, *padding)
    return patch_embed(
        x,
        *proj.as_conv3d()[:2],
        norm.weight,
        norm.bias,
        stride=stride,
        padding=padding,
        eps=norm.eps,
    )


def conv_stem(
    x: Tensor,
    layers: Iterable[tuple[Layer, BatchNorm | Called | None]],
    *,
    temporal_strides: Iterable[int] = (),
) -> Tensor:
    """Overlapping 3x3 convolutions of stride 2, each with its BatchNorm, a GELU between two.

    Args:
        x: ``[B, T, H, W, C]``, floating, in any memory layout; ``T = 1`` for 2-D convolutions.
        layers: convolutions ``[C', C, 3, 3]`` or ``[C', C, 3, 3, 3]`` and the norms behind them,
            ``None`` where one is a part of its convolution.
        temporal_strides: of every layer, for 3-D convolutions.

    Returns:
        ``[B, T', H', W', C']`` in ``x``'s dtype; every layer halves H and W, rounding up, and
        divides T by its temporal stride.

    Raises:
        RuntimeError, ValueError: what the convolution and ``batch_norm`` raise.
    """
    strides, layers = tuple(temporal_strides), list(layers)
    for depth, (conv, norm) in enumerate(layers):
        stride = (*strides[depth : depth + 1], 2, 2)
        x = _conv_norm(x, conv, norm, stride, gelu=depth < len(layers) - 1)
    return x


def _conv_norm(
    x: Tensor, conv: Layer, norm: BatchNorm | Called | None, stride: Sequence[int], *, gelu: bool
) -> Tensor:
    padding = (1,) * len(stride)
    if isinstance(conv, Called) or isinstance(norm, Called) or (norm is not None and norm.training):
        x = _convolution(x, conv, stride, padding)
        if norm is not None:
            return batch_norm(x, norm, gelu=gelu)
    else:
        if norm is not None:
            conv = conv.scale_output(*norm.scale_shift())
        x = _convolution(x, conv, stride, padding)
    if not gelu:
        return x
    # Without gradients in place: the largest map of the model need not be there twice.
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


def _convolution(x: Tensor, conv: Layer, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """``[B, T, H, W, C]`` to the same; ``T = 1`` for a convolution over two axes."""
    if isinstance(conv, Called):
        return conv(x)
    if len(stride) == 2:
        x = x.squeeze(1).contiguous().movedim(-1, 1)
        return F.conv2d(x, *conv[:2], stride=stride, padding=padding).movedim(1, -1).unsqueeze(1)
    if onednn.serves(x) and not needs_grad(x, *conv[:2]):
        return onednn.convolution(x, *conv[:2], stride, padding)
    x = x.contiguous().movedim(-1, 1)
    return F.conv3d(x, *conv[:2], stride=stride, padding=padding).movedim(1, -1)
