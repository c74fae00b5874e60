"""Batch normalisation, and the GELU behind it, as one pass over its input; its gradient in two.

PyTorch takes a pass for each of them, and keeps what lies between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _extension
from .backends import chosen_backend, in_forward_mode
from .kernels import kernels, register_fake
from .once import once_differentiable

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def serves(x: Tensor) -> bool:
    """Whether rows of these channels, on a CPU and not empty, go through here."""
    if _extension.missing is not None or chosen_backend() not in (None, "cpu"):
        return False
    return x.is_cpu and x.dtype in _DTYPES and x.numel() > 0 and not in_forward_mode()


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor | None,
    eps: float,
    *,
    gelu: bool = False,
) -> tuple[Tensor, Tensor]:
    """``weight (x - mean) / sqrt(variance + eps) + bias``, or GELU of that.

    Args:
        x: ``[..., C]``.
        weight, bias: ``[C]``, ``None`` for ones and zeros.
        mean: ``[C]``, a constant; without a variance any number near the batch's mean.
        variance: ``[C]``, a constant; ``None`` for the batch's own statistics.
        eps: what is added to the variance.
        gelu: whether GELU (the exact, erf form) is behind it.

    Returns:
        ``[..., C]``, contiguous, in ``x``'s dtype; and the mean and, of a batch, its unbiased
        variance, ``[2, C]`` float32, without gradient.
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y, found, *_ = _BatchNorm.apply(rows, weight, bias, mean, variance, eps, gelu)
    return y.view(x.shape), found


class _BatchNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor | None,
        eps: float,
        gelu: bool,
    ) -> tuple[Tensor, ...]:
        center, n = mean.to(torch.float32, copy=True).contiguous(), x.shape[0]
        if variance is None:  # the few numbers of the statistics keep their digits in float64
            away, squares = kernels("cpu").moments(x, center).double() / n
            var = (squares - away.square()).clamp_min(0)
            found = torch.stack([center + away, var * (n / max(n - 1, 1))]).float()
        else:
            away, var = torch.zeros_like(center, dtype=torch.float64), variance.double()
            found = torch.stack([center, var.float()])
        rstd = (var + eps).rsqrt()
        scale = rstd if weight is None else weight * rstd
        shift = -away * scale if bias is None else bias - away * scale
        coefficients = torch.stack([scale, shift, away, rstd]).float()
        y = kernels("cpu").scale_shift(x, center, coefficients[0], coefficients[1], gelu)
        return y, found, center, coefficients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        x, weight, bias, _, variance, _, ctx.gelu = inputs
        _, *rest = output
        ctx.batch = variance is None
        ctx.dtypes = [t if t is None else t.dtype for t in (weight, bias)]
        ctx.mark_non_differentiable(*rest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *rest[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if dy is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        x, center, coefficients = ctx.saved_tensors
        scale, shift, away, rstd = coefficients.unbind()
        want_x, want_weight, want_bias, *_ = ctx.needs_input_grad
        norm = center, scale, shift
        dx: Tensor | None = None
        dweight: Tensor | None = None
        dbias: Tensor | None = None
        dy = dy.contiguous()
        offset = slope = torch.zeros_like(scale)
        if ctx.batch or want_weight or want_bias:
            dbias, product = kernels("cpu").scale_shift_backward_sums(dy, x, *norm, ctx.gelu)
            dweight = (product - away * dbias) * rstd
            if ctx.batch:
                slope = -scale * rstd * dweight / x.shape[0]
                offset = -scale * dbias / x.shape[0] - slope * away
        if want_x:
            dx = kernels("cpu").scale_shift_backward(dy, x, *norm, offset, slope, ctx.gelu)
        dweight, dbias = (
            d.to(dtype) if want and d is not None else None
            for d, dtype, want in zip(
                (dweight, dbias), ctx.dtypes, (want_weight, want_bias), strict=True
            )
        )
        return dx, dweight, dbias, None, None, None, None


@register_fake("scale_shift")
def _fake(x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, gelu: bool) -> Tensor:
    return x.new_empty(x.shape)


@register_fake("scale_shift_backward_sums")
def _fake_sums(
    dy: Tensor, x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, gelu: bool
) -> Tensor:
    return x.new_empty(2, x.shape[1], dtype=torch.float32)


@register_fake("scale_shift_backward")
def _fake_backward(
    dy: Tensor,
    x: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    offset: Tensor,
    slope: Tensor,
    gelu: bool,
) -> Tensor:
    return x.new_empty(x.shape)
