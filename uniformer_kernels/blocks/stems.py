"""What stands before a stage's blocks: a smaller grid with more channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import onednn
from ..backends import needs_grad
from ..ops import patch_embed
from .norms import batch_norm
from .parameters import Affine, BatchNorm, LayerNorm


def patch_stem(
    x: Tensor, *, proj: Affine, norm: LayerNorm, stride: Sequence[int], padding: Sequence[int]
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
    if proj.weight.dim() == 4:
        stride, padding = (1, *stride), (0, *padding)
    return patch_embed(
        x,
        *proj.as_conv3d(),
        norm.weight,
        norm.bias,
        stride=stride,
        padding=padding,
        eps=norm.eps,
    )


def conv_stem(
    x: Tensor,
    layers: Iterable[tuple[Affine, BatchNorm]],
    *,
    temporal_strides: Iterable[int] = (),
) -> Tensor:
    """Overlapping 3x3 convolutions of stride 2, each with its BatchNorm, a GELU between two.

    Args:
        x: ``[B, T, H, W, C]``, floating, in any memory layout; ``T = 1`` for 2-D convolutions.
        layers: convolutions ``[C', C, 3, 3]`` or ``[C', C, 3, 3, 3]`` and the norms behind them.
        temporal_strides: of every layer, for 3-D convolutions.

    Returns:
        ``[B, T', H', W', C']`` in ``x``'s dtype; every layer halves H and W, rounding up, and
        divides T by its temporal stride.

    Raises:
        RuntimeError, ValueError: what the convolution and ``batch_norm`` raise.
    """
    strides = iter(temporal_strides)
    for depth, (conv, norm) in enumerate(layers):
        stride = (2, 2) if conv.weight.dim() == 4 else (next(strides), 2, 2)
        x = _conv_norm(_gelu(x) if depth else x, conv, norm, stride)
    return x


def _gelu(x: Tensor) -> Tensor:
    """Without gradients in place: the largest map of the model need not be there twice."""
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


def _conv_norm(x: Tensor, conv: Affine, norm: BatchNorm, stride: Sequence[int]) -> Tensor:
    if not norm.training:
        conv = conv.scale_output(*norm.scale_shift())
    if len(stride) == 2:
        x = x.squeeze(1).movedim(-1, 1).contiguous(memory_format=torch.channels_last)
        x = F.conv2d(x, *conv, stride=stride, padding=1).movedim(1, -1).unsqueeze(1)
    elif onednn.serves(x) and not needs_grad(x, *conv):
        x = onednn.convolution(x, *conv, stride, (1, 1, 1))
    else:
        x = x.movedim(-1, 1).contiguous(memory_format=torch.channels_last_3d)
        x = F.conv3d(x, *conv, stride=stride, padding=1).movedim(1, -1)
    return batch_norm(x, norm) if norm.training else x
