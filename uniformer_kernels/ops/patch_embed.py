"""The patch stem: a strided convolution as one matrix product, and the LayerNorm after it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .. import checks, reference
from ..backends import Implementation, Operator, always
from .linear import _cpu_declines, _cpu_linear

_NAME = "patch_embed"


def _patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """``[B, T', H', W', kt, kh, kw, C]``, a view but for the padding."""
    if any(padding):
        pt, ph, pw = padding
        x = F.pad(x, (0, 0, pw, pw, ph, ph, pt, pt))
    for axis in range(3):
        x = x.unfold(1 + axis, kernel[axis], stride[axis])
    return x.movedim(4, -1)


def _cpu_patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0, 0),
    eps: float = 1e-5,
) -> Tensor:
    patches = _patches(x, weight.shape[2:], stride, padding)
    rows = patches.reshape(*patches.shape[:4], weight[0].numel())
    y = _cpu_linear(rows, weight.movedim(1, -1).reshape(weight.shape[0], -1), bias)
    return y if norm_weight is None else F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, eps)


_patch_embed = Operator(
    _NAME,
    cpu=Implementation(_cpu_patch_embed, _cpu_declines),
    reference=Implementation(reference.patch_embed, always),
)


def patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0, 0),
    eps: float = 1e-5,
) -> Tensor:
    """Embed patches: ``layer_norm(conv3d(x))``, the stem in front of every stage.

    Args:
        x: ``[B, T, H, W, C]``, any strides (a permuted view of ``[B, C, T, H, W]`` is welcome).
        weight: ``[C_out, C, kt, kh, kw]``.
        bias: ``[C_out]`` or ``None``.
        norm_weight: ``[C_out]``, LayerNorm's weight; ``None`` for no normalisation.
        norm_bias: ``[C_out]`` or ``None``.
        stride: of time, height and width.
        padding: zeros on both sides of time, height and width.
        eps: LayerNorm's.

    Returns:
        ``[B, T', H', W', C_out]``, contiguous, ``T' = (T + 2 padding - kt) // stride + 1``.

    Raises:
        ValueError: a shape or device that does not fit, or a map smaller than the kernel.
        TypeError: a dtype that does not fit.
    """
    checks.shape(_NAME, "x", x, ["B", "T", "H", "W", "C"])
    checks.shape(_NAME, "weight", weight, ["C_out", x.shape[4], "kt", "kh", "kw"])
    for name, vector in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if vector is not None:
            checks.shape(_NAME, name, vector, [weight.shape[0]])
    if len(stride) != 3 or min(stride) < 1:
        raise ValueError(f"{_NAME}: stride: expected three positive numbers, got {stride}")
    if len(padding) != 3 or min(padding) < 0:
        raise ValueError(f"{_NAME}: padding: expected three numbers from 0, got {padding}")
    for axis, size, kernel, pad in zip("THW", x.shape[1:4], weight.shape[2:], padding, strict=True):
        if size + 2 * pad < kernel:
            raise ValueError(
                f"{_NAME}: x: expected {axis} of at least {kernel - 2 * pad} for a kernel of "
                f"{kernel} and padding {pad}, got {size}"
            )
    checks.floating(_NAME, "x", x)
    x, weight, bias, norm_weight, norm_bias = checks.autocast(
        x, weight, bias, norm_weight, norm_bias
    )
    checks.alike(
        _NAME, ("x", x), weight=weight, bias=bias, norm_weight=norm_weight, norm_bias=norm_bias
    )
    return _patch_embed(
        x, weight, bias, norm_weight, norm_bias, stride=stride, padding=padding, eps=eps
    )
