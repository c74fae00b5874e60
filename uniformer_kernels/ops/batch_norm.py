"""Batch statistics, and batch normalisation as a part of the linear layer behind it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _extension, checks, reference
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake

_NAME = "moments"


class _Moments(torch.autograd.Function):
    """A backend's kernels, differentiable once; the shift is taken as a constant."""

    @staticmethod
    def forward(x: Tensor, shift: Tensor | None, backend: str) -> Tensor:
        return kernels(backend).moments(x, shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, shift, ctx.backend = inputs
        ctx.save_for_backward(x, shift)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dmoments: Tensor) -> tuple[Tensor | None, ...]:
        x, shift = ctx.saved_tensors
        dx = kernels(ctx.backend).moments_backward(None, x, shift, dmoments.contiguous())
        return dx, None, None


def _kernel(backend: str, x: Tensor, *, shift: Tensor | None = None) -> Tensor:
    x = x.reshape(-1, x.shape[-1]).contiguous()
    shift = None if shift is None else shift.contiguous()
    if needs_grad(x):
        return _Moments.apply(x, shift, backend)
    return kernels(backend).moments(x, shift)


def _cpu_declines(x: Tensor, **_: Any) -> str | None:
    if _extension.missing is not None:
        return _extension.missing
    return None if x.device.type == "cpu" else f"x is on {x.device}"


@register_fake(_NAME)
def _fake(x: Tensor, shift: Tensor | None) -> Tensor:
    return x.new_empty(2, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


@register_fake(f"{_NAME}_backward")
def _fake_backward(dy: Tensor | None, x: Tensor, shift: Tensor | None, dmoments: Tensor) -> Tensor:
    return x.new_empty(x.shape)


_moments = Operator(
    _NAME,
    cpu=Implementation(partial(_kernel, "cpu"), _cpu_declines),
    reference=Implementation(reference.moments, always),
)


def moments(x: Tensor, *, shift: Tensor | None = None) -> Tensor:
    """Every channel's sums of ``x - shift`` and of its square, for batch statistics.

    With ``n`` values a channel, ``mean = shift + m[0] / n`` and
    ``variance = m[1] / n - (m[0] / n) ** 2``; a shift near the mean keeps the digits.

    Args:
        x: ``[..., C]``, any strides.
        shift: ``[C]`` float32 (float64 for float64), a constant; ``None`` for zeros.

    Returns:
        ``[2, C]``, float32 (float64 for float64).

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    checks.floating(_NAME, "x", x)
    checks.at_least_1d(_NAME, "x", x)
    check_shift(_NAME, x, shift)
    return _moments(x, shift=shift)


def check_shift(operator: str, x: Tensor, shift: Tensor | None) -> None:
    """``shift`` fits sums over ``x``'s last axis."""
    if shift is None:
        return
    checks.shape(operator, "shift", shift, [x.shape[-1]])
    wide = torch.promote_types(x.dtype, torch.float32)
    if shift.dtype != wide:
        raise TypeError(f"{operator}: shift: expected {wide} for {x.dtype}, got {shift.dtype}")
    if shift.device != x.device:
        raise ValueError(f"{operator}: shift: expected on {x.device}, got {shift.device}")
