"""Both halves of a local block without gradients, its norms folded into the layers behind them."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, reference
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake
from . import depthwise_conv
from .feed_forward import _triton_feed_forward
from .linear import (
    _check_affine,
    _cpu_linear,
    _rows_linear,
    _triton_declines,
    _triton_linear,
    linear,
    uses_packed,
)

_LINEAR, _FEED_FORWARD = "depthwise_linear", "depthwise_feed_forward"
_NARROW = 128  # channels whose products stay on a GPU's chip at once
_TAPS = 25  # of a frame, which a lane keeps in registers


def _cpu_depthwise_linear(
    x: Tensor, dw_weight: Tensor, dw_bias: Tensor | None, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    y = kernels("cpu").depthwise_conv3d(x, dw_weight, dw_bias, True)
    return y, _cpu_linear(y, weight, bias)


def _cpu_depthwise_feed_forward(
    x: Tensor, residual: Tensor, dw_weight: Tensor, dw_bias: Tensor | None, *layers: Tensor | None
) -> Tensor:
    y = kernels("cpu").depthwise_conv3d(x, dw_weight, dw_bias, False)
    return kernels("cpu").pointwise_feed_forward(y, residual, *layers)


def _triton_depthwise_linear(
    x: Tensor, dw_weight: Tensor, dw_bias: Tensor | None, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    if _in_one_kernel(dw_weight, *weight.shape):
        return kernels("triton").depthwise_linear(x, dw_weight, dw_bias, weight, bias)
    y = kernels("triton").depthwise_conv3d(x, dw_weight, dw_bias, True)
    return y, _triton_linear(y, weight, bias)


def _triton_depthwise_feed_forward(
    x: Tensor,
    residual: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    *layers: Tensor | None,
) -> Tensor:
    if _in_one_kernel(dw_weight, x.shape[4]):
        pw = pw_weight, pw_bias
        return kernels("triton").depthwise_feed_forward(
            x, residual, dw_weight, dw_bias, *pw, *layers
        )
    y = kernels("triton").depthwise_conv3d(x, dw_weight, dw_bias, False)
    r = _triton_linear(y, pw_weight, pw_bias, residual=residual)
    narrow = r.to(x.dtype)
    return _triton_feed_forward(narrow, *layers, residual=checks.apart(r, narrow))


def _in_one_kernel(dw_weight: Tensor, *channels: int) -> bool:
    return max(channels) <= _NARROW and dw_weight.shape[3:].numel() <= _TAPS


def _records(*tensors: Tensor | None) -> str | None:
    """The reason of a backend without gradients."""
    return "it records no gradients, and one is asked for" if needs_grad(*tensors) else None


def _cpu_declines(x: Tensor, *others: Tensor | None) -> str | None:
    return _records(x, *others) or depthwise_conv._cpu_declines(x)


def _triton_linear_declines(
    x: Tensor, dw_weight: Tensor, dw_bias: Tensor | None, weight: Tensor, bias: Tensor | None
) -> str | None:
    records = _records(x, dw_weight, dw_bias, weight, bias)
    return records or _triton_declines(x, weight, dw_weight)


def _triton_feed_forward_declines(
    x: Tensor, residual: Tensor, dw_weight: Tensor, dw_bias: Tensor | None, *layers: Tensor | None
) -> str | None:
    return _records(x, residual, dw_weight, dw_bias, *layers) or _triton_declines(
        x, *layers, dw_weight, residual=residual
    )


@register_fake(_LINEAR)
def _fake_linear(
    x: Tensor, dw_weight: Tensor, dw_bias: Tensor | None, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(*x.shape[:-1], weight.shape[0])


@register_fake(_FEED_FORWARD)
def _fake_feed_forward(x: Tensor, residual: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))


_depthwise_linear = Operator(
    _LINEAR,
    cpu=Implementation(_cpu_depthwise_linear, _cpu_declines),
    triton=Implementation(_triton_depthwise_linear, _triton_linear_declines),
    reference=Implementation(reference.depthwise_linear, always),
)

_depthwise_feed_forward = Operator(
    _FEED_FORWARD,
    cpu=Implementation(_cpu_depthwise_feed_forward, _cpu_declines),
    triton=Implementation(_triton_depthwise_feed_forward, _triton_feed_forward_declines),
    reference=Implementation(reference.depthwise_feed_forward, always),
)


def depthwise_linear(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``y = x + DW(x)`` and ``y weightᵀ + bias``, for inference.

    The first half of a local block: the dynamic position embedding and, with the norm folded into
    it, the first pointwise convolution (UniFormer, Eq. 2 and 4). Where a gradient is to be
    recorded only ``reference`` serves.

    Args:
        x: ``[B, T, H, W, C]``, any strides; contiguous is fastest.
        dw_weight: ``[C, 1, kt, kh, kw]``, each kernel size odd, at most 7.
        dw_bias: ``[C]`` or ``None``.
        weight: ``[C_out, C]``.
        bias: ``[C_out]`` or ``None``.
        packed: ``pack_linear(weight, bias)``, as for ``linear``.

    Returns:
        ``y``, ``[B, T, H, W, C]``, and its linear image, ``[B, T, H, W, C_out]``; contiguous, in
        ``x``'s dtype. Under autocast ``y`` stays in it, as the residual of ``depthwise_conv3d``.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
        BackendError: a gradient is to be recorded by a backend that was asked for and has none.
    """
    stream = x
    x, dw_weight, dw_bias = depthwise_conv._checked(_LINEAR, x, dw_weight, dw_bias, "dw_")
    _check_affine(_LINEAR, x, weight, bias)
    weight, bias = checks.autocast(weight, bias)
    checks.alike(_LINEAR, ("x", x), weight=weight, bias=bias)
    if stream.dtype != x.dtype:  # autocast narrows the branch, not what it adds to
        y = depthwise_conv.depthwise_conv3d(stream, dw_weight, dw_bias, residual=True)
        return y, linear(y, weight, bias, packed=packed)
    if uses_packed((packed,), x, dw_weight, dw_bias, weight, bias):
        y = kernels("cpu").depthwise_conv3d(x, dw_weight, dw_bias, True)
        return y, _rows_linear(y, weight, bias, None, None, packed)
    return _depthwise_linear(x, dw_weight, dw_bias, weight, bias)


def depthwise_feed_forward(
    x: Tensor,
    residual: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    packed: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
) -> Tensor:
    """``r = residual + PW(DW(x))``, then ``r + fc2(gelu(fc1(r)))``, for inference.

    The second half of a local block: token affinity, the second pointwise convolution and the
    feed-forward network, its norm folded into ``fc1`` and layer scales into ``pw`` and ``fc2``
    (UniFormer, Eq. 4-6). Where a gradient is to be recorded only ``reference`` serves.

    Args:
        x: ``[B, T, H, W, C]``, any strides; contiguous is fastest.
        residual: ``[B, T, H, W, C]``; autocast leaves it as it is.
        dw_weight: ``[C, 1, kt, kh, kw]``, each kernel size odd, at most 7.
        dw_bias: ``[C]`` or ``None``.
        pw_weight: ``[C, C]``.
        pw_bias: ``[C]`` or ``None``.
        fc1_weight: ``[hidden, C]``.
        fc1_bias: ``[hidden]`` or ``None``.
        fc2_weight: ``[C, hidden]``.
        fc2_bias: ``[C]`` or ``None``.
        packed: ``pack_linear`` of the three layers, as for ``linear``.

    Returns:
        ``[B, T, H, W, C]``, contiguous, in ``x``'s dtype or the wider one of ``x`` and
        ``residual``.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
        BackendError: a gradient is to be recorded by a backend that was asked for and has none.
    """
    x, dw_weight, dw_bias = depthwise_conv._checked(_FEED_FORWARD, x, dw_weight, dw_bias, "dw_")
    channels = x.shape[4:]
    checks.shape(_FEED_FORWARD, "residual", residual, x.shape)
    checks.shape(_FEED_FORWARD, "pw_weight", pw_weight, [*channels, *channels])
    _check_affine(_FEED_FORWARD, x, pw_weight, pw_bias, "pw_")
    _check_affine(_FEED_FORWARD, x, fc1_weight, fc1_bias, "fc1_")
    checks.shape(_FEED_FORWARD, "fc2_weight", fc2_weight, [*channels, fc1_weight.shape[0]])
    if fc2_bias is not None:
        checks.shape(_FEED_FORWARD, "fc2_bias", fc2_bias, channels)
    layers = {
        "pw_weight": pw_weight,
        "pw_bias": pw_bias,
        "fc1_weight": fc1_weight,
        "fc1_bias": fc1_bias,
        "fc2_weight": fc2_weight,
        "fc2_bias": fc2_bias,
    }
    layers = dict(zip(layers, checks.autocast(*layers.values()), strict=True))
    checks.alike(_FEED_FORWARD, ("x", x), **layers)
    checks.alongside(_FEED_FORWARD, ("x", x), residual=residual)
    if uses_packed(packed, x, residual, dw_weight, dw_bias, *layers.values()):
        y = kernels("cpu").depthwise_conv3d(x, dw_weight, dw_bias, False)
        return kernels("cpu").pointwise_feed_forward(y, residual, *layers.values(), *packed)
    return _depthwise_feed_forward(x, residual, dw_weight, dw_bias, *layers.values())
