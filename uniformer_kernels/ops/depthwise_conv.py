"""Depthwise 3-D convolution on channels-last maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _extension, checks, cuda, reference, triton
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake
from ..once import once_differentiable
from .batch_norm import moments

_NAME = cuda.CONVOLUTION
_WITH_MOMENTS = f"{_NAME}_with_moments"
_BACKWARD = f"{_NAME}_backward"
_MAX_KERNEL = 7


class _DepthwiseConv3d(torch.autograd.Function):
    """A backend's kernels, differentiable once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool, backend: str
    ) -> Tensor:
        return _convolve(backend, x, weight, bias, residual)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, _, ctx.residual, ctx.backend = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        want_input, want_weight, want_bias, *_ = ctx.needs_input_grad
        dx, dw, db = _gradients(
            ctx.backend, dy, x, weight, ctx.residual, want_input, want_weight or want_bias
        )
        return (
            dx if want_input else None,
            dw if want_weight else None,
            db if want_bias else None,
            None,
            None,
        )


class _WithMoments(torch.autograd.Function):
    """The same, with the moments of what comes out; the shift is taken as a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: bool,
        shift: Tensor | None,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        return _compute_with_moments(backend, x, weight, bias, residual, shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, ctx.residual, shift, ctx.backend = inputs
        y, _ = output
        ctx.save_for_backward(x, weight, shift, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dmoments: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, shift, y = ctx.saved_tensors
        want_input, want_weight, want_bias, *_ = ctx.needs_input_grad
        channels = y.shape[4]
        dy = (
            kernels(ctx.backend)
            .moments_backward(
                dy.reshape(-1, channels).contiguous(),
                y.reshape(-1, channels),
                shift,
                dmoments.contiguous(),
            )
            .view(y.shape)
        )
        dx, dw, db = _gradients(
            ctx.backend, dy, x, weight, ctx.residual, want_input, want_weight or want_bias
        )
        return (
            dx if want_input else None,
            dw if want_weight else None,
            db if want_bias else None,
            None,
            None,
            None,
        )


def _kernel(
    backend: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = False,
) -> Tensor:
    if needs_grad(x, weight, bias):
        return _DepthwiseConv3d.apply(x, weight, bias, residual, backend)
    return _convolve(backend, x, weight, bias, residual)


def _convolve(
    backend: str, x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool
) -> Tensor:
    return _fastest(backend, _NAME, x, weight)(x, weight, bias, residual)


def _fastest(
    backend: str, name: str, x: Tensor, weight: Tensor, suffix: str = ""
) -> Callable[..., Any]:
    """A backend's kernel, or the twin of it that the tuning table has a row of."""
    if backend == "cuda":
        name = name.replace(_NAME, cuda.fastest(x, weight, suffix))
    return getattr(kernels(backend), name)


def _gradients(
    backend: str,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    residual: bool,
    want_input: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, weight and bias; the first is a convolution, and as fast as one."""
    of_input = _fastest(backend, _BACKWARD, x, weight)
    of_weight = _fastest(backend, _BACKWARD, x, weight, "_backward")
    if of_input == of_weight or not (want_input and want_weight):
        both = of_input if want_input else of_weight
        return both(dy, x, weight, residual, want_input, want_weight)
    dx, *_ = of_input(dy, x, weight, residual, True, False)
    return dx, *of_weight(dy, x, weight, residual, False, True)[1:]


def _compute_with_moments(
    backend: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: bool,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if backend != "cpu":
        return _fastest(backend, _WITH_MOMENTS, x, weight)(x, weight, bias, residual, shift)
    y = kernels(backend).depthwise_conv3d(x, weight, bias, residual)
    return y, kernels(backend).moments(y.view(-1, y.shape[4]), shift)


def _kernel_with_moments(
    backend: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = False,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if needs_grad(x, weight, bias):
        return _WithMoments.apply(x, weight, bias, residual, shift, backend)
    return _compute_with_moments(backend, x, weight, bias, residual, shift)


def _cpu_declines(x: Tensor, *_: Any, **__: Any) -> str | None:
    if _extension.missing is not None:
        return _extension.missing
    return None if x.device.type == "cpu" else f"x is on {x.device}"


def _cuda_declines(x: Tensor, *_: Any, **__: Any) -> str | None:
    return cuda.declines(x)


def _triton_declines(x: Tensor, *_: Any, **__: Any) -> str | None:
    return triton.declines(x)


@register_fake(_NAME)
@register_fake(cuda.TOEPLITZ)
@register_fake(cuda.TMA)
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    return x.new_empty(x.shape)


@register_fake(_WITH_MOMENTS)
@register_fake(f"{cuda.TOEPLITZ}_with_moments")
@register_fake(f"{cuda.TMA}_with_moments")
def _fake_with_moments(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(2, x.shape[4], dtype=_statistics(x))


@register_fake(_BACKWARD)
@register_fake(f"{cuda.TOEPLITZ}_backward")
@register_fake(f"{cuda.TMA}_backward")
def _fake_backward(
    dy: Tensor, x: Tensor, weight: Tensor, residual: bool, want_input: bool, want_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if want_input else 0),
        weight.new_empty(weight.shape if want_weight else 0),
        weight.new_empty(weight.shape[0] if want_weight else 0),
    )


_depthwise_conv3d = Operator(
    _NAME,
    cpu=Implementation(partial(_kernel, "cpu"), _cpu_declines),
    cuda=Implementation(partial(_kernel, "cuda"), _cuda_declines, cuda.convolution_yields),
    triton=Implementation(partial(_kernel, "triton"), _triton_declines),
    reference=Implementation(reference.depthwise_conv3d, always),
)

_depthwise_conv3d_with_moments = Operator(
    _WITH_MOMENTS,
    cpu=Implementation(partial(_kernel_with_moments, "cpu"), _cpu_declines),
    cuda=Implementation(
        partial(_kernel_with_moments, "cuda"), _cuda_declines, cuda.convolution_yields
    ),
    triton=Implementation(partial(_kernel_with_moments, "triton"), _triton_declines),
    reference=Implementation(reference.depthwise_conv3d_with_moments, always),
)


def depthwise_conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: bool = False
) -> Tensor:
    """Convolve every channel with its own kernel: stride 1, zero padding to the same size.

    The dynamic position embedding (with ``residual``) and the local token affinity of UniFormer
    (seeds' Eq. 2, 5); images have ``T = 1`` and ``kt = 1``. Plain PyTorch:
    ``F.conv3d(x.movedim(-1, 1), weight, bias, padding="same", groups=C).movedim(1, -1)``.

    >>> weight = torch.ones(4, 1, 1, 3, 3)
    >>> uk.depthwise_conv3d(torch.ones(1, 1, 3, 3, 4), weight)[0, 0, :, :, 0].tolist()
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]

    Args:
        x: ``[B, T, H, W, C]``, any strides; contiguous is fastest.
        weight: ``[C, 1, kt, kh, kw]``, each kernel size odd, at most 7.
        bias: ``[C]``.
        residual: add ``x`` to the result.

    Returns:
        ``[B, T, H, W, C]``, contiguous, in ``x``'s dtype (float32, bfloat16, float16, float64);
        sums are kept in float32, or float64.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    stream = x
    x, weight, bias = _checked(_NAME, x, weight, bias)
    if residual and stream.dtype != x.dtype:  # autocast narrows the branch, not what it adds to
        return stream + _depthwise_conv3d(x, weight, bias)
    return _depthwise_conv3d(x, weight, bias, residual=residual)


def depthwise_conv3d_with_moments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = False,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``depthwise_conv3d``, and every channel's first two moments, for the BatchNorm behind it.

    The moments are those of what is returned, rounded to its dtype: it is what the norm is applied
    to. Gradients flow through both results.

    Args:
        x: ``[B, T, H, W, C]``, any strides; contiguous is fastest.
        weight: ``[C, 1, kt, kh, kw]``, each kernel size odd, at most 7.
        bias: ``[C]``.
        residual: add ``x`` to the result.
        shift: ``[C]``, float32 (float64 with float64), zeros by default: taken from the result
            before it is summed, so that squares of a large mean do not hide a small variance. The
            running mean will do. A constant: it gets no gradient.

    Returns:
        ``y`` as ``depthwise_conv3d`` gives it, and ``[2, C]`` in ``shift``'s dtype: the sums of
        ``y - shift`` and of ``(y - shift)²`` over samples and positions.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    stream = x
    x, weight, bias = _checked(_WITH_MOMENTS, x, weight, bias)
    if shift is not None:
        checks.shape(_WITH_MOMENTS, "shift", shift, [x.shape[4]])
        checks.alongside(_WITH_MOMENTS, ("x", x), shift=shift)
        if shift.dtype != _statistics(x):
            raise TypeError(f"{_WITH_MOMENTS}: shift: expected {_statistics(x)}, got {shift.dtype}")
        shift = shift.detach().contiguous()
    if residual and stream.dtype != x.dtype:
        y = stream + _depthwise_conv3d(x, weight, bias)
        return y, moments(y, shift=shift)
    return _depthwise_conv3d_with_moments(x, weight, bias, residual=residual, shift=shift)


def _statistics(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _checked(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, prefix: str = ""
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in the dtype to compute in, once they fit."""
    checks.shape(name, "x", x, ["B", "T", "H", "W", "C"])
    checks.shape(name, f"{prefix}weight", weight, [x.shape[4], 1, "kt", "kh", "kw"])
    if any(k % 2 == 0 or k > _MAX_KERNEL for k in weight.shape[2:]):
        raise ValueError(
            f"{name}: {prefix}weight: expected odd kernel sizes up to {_MAX_KERNEL}, "
            f"got {list(weight.shape[2:])}"
        )
    if bias is not None:
        checks.shape(name, f"{prefix}bias", bias, [x.shape[4]])
    checks.floating(name, "x", x)
    x, weight, bias = checks.autocast(x, weight, bias)
    checks.alike(name, ("x", x), **{f"{prefix}weight": weight, f"{prefix}bias": bias})
    return x, weight, bias
