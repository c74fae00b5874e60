"""The local UniFormer block of stages 1 and 2."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from torch import Tensor

from ..backends import needs_grad
from ..ops import (
    depthwise_conv3d_with_moments,
    depthwise_feed_forward,
    depthwise_linear,
)
from ..ops.batch_norm import with_moments
from .layers import Called, Layer, depthwise_conv3d, feed_forward, linear, scaled
from .norms import near_mean, norm_then
from .parameters import Affine, BatchNorm
from .residual import add_branch


def local_block(
    x: Tensor,
    *,
    dpe: Layer,
    norm1: BatchNorm | Called | None,
    pw1: Layer,
    dw: Layer,
    pw2: Layer,
    norm2: BatchNorm | Called | None,
    fc1: Layer,
    fc2: Layer | None,
    gamma_1: Tensor | None = None,
    gamma_2: Tensor | None = None,
    drop_path: float = 0.0,
) -> Tensor:
    """DPE, local relation aggregation, feed-forward (UniFormer, Eq. 1-6)::

        x = x + DPE(x)
        x = x + DropPath(gamma_1 * PW2(DW(PW1(BN(x)))))
        x = x + DropPath(gamma_2 * FC2(GELU(FC1(BN(x)))))

    Args:
        x: ``[B, T, H, W, C]``, floating.
        dpe: depthwise convolution, ``[C, 1, 3, 3]`` or ``[C, 1, 3, 3, 3]``.
        norm1, norm2: BatchNorm over ``C``; ``None`` where it is a part of the layer behind it.
        pw1, pw2: pointwise convolutions, ``[C, C, 1, 1]`` or ``[C, C, 1, 1, 1]``.
        dw: depthwise convolution, ``[C, 1, 5, 5]`` or ``[C, 1, 5, 5, 5]``.
        fc1, fc2: pointwise convolutions to the hidden channels and back; without ``fc2``, ``fc1``
            is all of the feed-forward, to be called.
        gamma_1, gamma_2: layer scales with ``C`` elements.
        drop_path: probability that a sample loses a branch, each branch on its own; 0 when
            evaluating.

    Returns:
        ``[B, T, H, W, C]`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what the operators raise for a shape or dtype that does not fit;
            one value per channel with batch statistics.
    """
    layers = dpe, norm1, pw1, dw, pw2, norm2, fc1, fc2, gamma_1, gamma_2
    if not drop_path and _is_inference(x, layers):
        return _inference(x, *layers)
    moments = shift = None
    if _by_batch(x, norm1, dpe, pw1):
        shift = near_mean(depthwise_conv3d(*_middle(x, dpe), residual=True))
        dpe = dpe.as_conv3d()
        x, moments = depthwise_conv3d_with_moments(x, *dpe[:2], residual=True, shift=shift)
    else:
        x = depthwise_conv3d(x, dpe, residual=True)
    # The padding of DW meets PW1's output, bias included: folding the norm into PW1 is exact.
    y, pw1 = norm_then(x, norm1, pw1, moments, shift)
    y = depthwise_conv3d(linear(y, pw1), dw)
    x = add_branch(x, drop_path, linear, y, *scaled(gamma_1, pw2))
    moments = shift = None
    if _by_batch(x, norm2, fc1):
        shift = near_mean(x)
        x, moments = with_moments(x, shift=shift)
    y, fc1 = norm_then(x, norm2, fc1, moments, shift)
    return add_branch(x, drop_path, feed_forward, y, *scaled(gamma_2, fc1, fc2))


def _by_batch(x: Tensor, norm: BatchNorm | Called | None, *layers: Layer) -> bool:
    """Whether kernels sum what the norm's statistics are made of, next to what they do to ``x``."""
    if norm is None or any(isinstance(layer, Called) for layer in (norm, *layers)):
        return False
    return norm.training and x.numel() > 0


def _is_inference(x: Tensor, layers: Iterable[Layer | BatchNorm | Tensor | None]) -> bool:
    """Whether nothing is called, learnt, or normalised by the batch."""
    if needs_grad(x):
        return False
    for layer in layers:
        if isinstance(layer, Called) or (isinstance(layer, BatchNorm) and layer.training):
            return False
        tensors = layer[:2] if isinstance(layer, (Affine, BatchNorm)) else (layer,)
        if needs_grad(*tensors):
            return False
    return True


def _inference(
    x: Tensor,
    dpe: Affine,
    norm1: BatchNorm | None,
    pw1: Affine,
    dw: Affine,
    pw2: Affine,
    norm2: BatchNorm | None,
    fc1: Affine,
    fc2: Affine,
    gamma_1: Tensor | None,
    gamma_2: Tensor | None,
) -> Tensor:
    """The block in two operators, each of a depthwise convolution and what is behind it."""
    _, pw1 = norm_then(x, norm1, pw1)
    _, fc1 = norm_then(x, norm2, fc1)
    (pw2,), (fc1, fc2) = scaled(gamma_1, pw2), scaled(gamma_2, fc1, fc2)
    x, y = depthwise_linear(x, *dpe.as_conv3d()[:2], *pw1.as_linear()[:2], packed=pw1.packed)
    layers = (layer.as_linear()[:2] for layer in (pw2, fc1, fc2))
    packed = pw2.packed, fc1.packed, fc2.packed
    return depthwise_feed_forward(
        y, x, *dw.as_conv3d()[:2], *chain.from_iterable(layers), packed=packed
    )


def _middle(x: Tensor, conv: Affine) -> tuple[Tensor, Affine]:
    """A convolution of what reaches a sample's middle, from which it gets its own value there."""
    conv = Affine(*(t if t is None else t.detach() for t in conv)).as_conv3d()
    reach = [kernel // 2 for kernel in conv.weight.shape[2:]]
    around = [
        slice(max(n // 2 - r, 0), n // 2 + r + 1) for n, r in zip(x.shape[1:4], reach, strict=True)
    ]
    return x.detach()[(slice(0, 1), *around)], conv
