"""The local UniFormer block of stages 1 and 2."""

from __future__ import annotations

from torch import Tensor

from ..ops import depthwise_conv3d, depthwise_conv3d_with_moments, feed_forward, linear
from .norms import near_mean, norm_then
from .parameters import Affine, BatchNorm
from .residual import add_branch, layer_scaled


def local_block(
    x: Tensor,
    *,
    dpe: Affine,
    norm1: BatchNorm,
    pw1: Affine,
    dw: Affine,
    pw2: Affine,
    norm2: BatchNorm,
    fc1: Affine,
    fc2: Affine,
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
        norm1, norm2: BatchNorm over ``C``.
        pw1, pw2: pointwise convolutions, ``[C, C, 1, 1]`` or ``[C, C, 1, 1, 1]``.
        dw: depthwise convolution, ``[C, 1, 5, 5]`` or ``[C, 1, 5, 5, 5]``.
        fc1, fc2: pointwise convolutions to the hidden channels and back.
        gamma_1, gamma_2: layer scales with ``C`` elements.
        drop_path: probability that a sample loses a branch, each branch on its own; 0 when
            evaluating.

    Returns:
        ``[B, T, H, W, C]`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what the operators raise for a shape or dtype that does not fit;
            one value per channel with batch statistics.
    """
    moments = shift = None
    dpe = dpe.as_conv3d()
    if norm1.training and x.numel() > 0:
        shift = near_mean(depthwise_conv3d(*_middle(x, dpe), residual=True))
        x, moments = depthwise_conv3d_with_moments(x, *dpe, residual=True, shift=shift)
    else:
        x = depthwise_conv3d(x, *dpe, residual=True)
    # The padding of DW meets PW1's output, bias included: folding the norm into PW1 is exact.
    y, pw1 = norm_then(x, norm1, pw1, moments, shift)
    y = depthwise_conv3d(linear(y, *pw1), *dw.as_conv3d())
    x = add_branch(x, drop_path, linear, y, *layer_scaled(pw2, gamma_1))
    y, fc1 = norm_then(x, norm2, fc1)
    return add_branch(x, drop_path, feed_forward, y, *fc1, *layer_scaled(fc2, gamma_2))


def _middle(x: Tensor, conv: Affine) -> tuple[Tensor, Tensor, Tensor | None]:
    """A convolution of what reaches a sample's middle, from which it gets its own value there."""
    reach = [kernel // 2 for kernel in conv.weight.shape[2:]]
    around = [
        slice(max(n // 2 - r, 0), n // 2 + r + 1) for n, r in zip(x.shape[1:4], reach, strict=True)
    ]
    return x.detach()[(slice(0, 1), *around)], *(t if t is None else t.detach() for t in conv)
