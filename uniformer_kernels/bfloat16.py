"""Linear layers by products of bfloat16, with their neighbours; all are matrices.

The compiled kernels pack the weight for the processor's own products, AMX's where it has them, and
keep what lies between two layers in its caches. With AMX they also serve float32, at its full
precision: every number is the sum of three of bfloat16. A weight is packed for every call, unless
it comes with its ``packed`` form.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .kernels import kernels, register_fake


def multiplies(dtype: torch.dtype) -> bool:
    """Whether layers of this dtype go through here."""
    return dtype == torch.bfloat16 or (dtype == torch.float32 and _multiplies_float32())


@functools.cache
def _multiplies_float32() -> bool:
    return kernels("cpu").multiplies_float32()


def pack(weight: Tensor, bias: Tensor | None) -> Tensor:
    """A layer as the kernels of this processor multiply by it; others pack the weight again."""
    return kernels("cpu").bfloat16_pack(_packable(weight), _vector(bias))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str = "",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """``[residual +] activation(x weightᵀ + bias)``, in the wider dtype of ``x`` and residual."""
    fused, rest = _fusable(x, residual)
    y = kernels("cpu").bfloat16_linear(
        _rows(x), _packable(weight), _vector(bias), activation, fused, packed
    )
    return y if rest is None else rest + y


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    residual: Tensor | None = None,
    fc1_packed: Tensor | None = None,
    fc2_packed: Tensor | None = None,
) -> Tensor:
    """``[residual +] fc2(activation(fc1(x)))``, in the wider dtype of ``x`` and residual."""
    fused, rest = _fusable(x, residual)
    y = kernels("cpu").bfloat16_feed_forward(
        _rows(x),
        _packable(fc1_weight),
        _vector(fc1_bias),
        _packable(fc2_weight),
        _vector(fc2_bias),
        activation,
        fused,
        fc1_packed,
        fc2_packed,
    )
    return y if rest is None else rest + y


def pointwise_feed_forward(
    x: Tensor,
    residual: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *packed: Tensor | None,
) -> Tensor:
    """``r + fc2(gelu(fc1(r)))`` of ``r = residual + pw(x)``, in the wider dtype of both."""
    fused, _ = _fusable(x, residual)
    if fused is not None and fused.dtype == x.dtype:
        return kernels("cpu").bfloat16_pointwise_feed_forward(
            _rows(x),
            fused,
            *(_packable(pw_weight), _vector(pw_bias)),
            *(_packable(fc1_weight), _vector(fc1_bias)),
            *(_packable(fc2_weight), _vector(fc2_bias)),
            *packed,
        )
    pw_packed, *rest = packed
    r = linear(x, pw_weight, pw_bias, residual=residual, packed=pw_packed)
    layers = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    return feed_forward(r.to(x.dtype), *layers, "gelu", r, *rest)


def feed_forward_backward(
    dy: Tensor,
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    activation: str,
    want_input: bool,
) -> tuple[Tensor, ...] | None:
    """Gradients of ``x`` (empty, if not wanted), weights and biases of float32's network.

    ``None`` where numbers are not finite: parts of those give NaN that products of float32 do not.
    """
    gradients = kernels("cpu").split_feed_forward_backward(
        _rows(dy),
        _rows(x),
        fc1_weight.contiguous(),
        _vector(fc1_bias),
        fc2_weight.contiguous(),
        activation == "quick_gelu",
        want_input,
    )
    _, dfc1, _, dfc2, _ = gradients
    return None if (dfc1.sum() + dfc2.sum()).isnan() else gradients


def _fusable(x: Tensor, residual: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What the kernel adds, and what remains to be."""
    if residual is None or residual.dtype in (x.dtype, torch.float32):
        return None if residual is None else _rows(residual), None
    return None, residual


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _packable(weight: Tensor) -> Tensor:
    return weight if 1 in weight.stride() else weight.contiguous()


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


@register_fake("bfloat16_pack")
def _fake_pack(weight: Tensor, bias: Tensor | None) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()  # the processor's business
    return weight.new_empty(size, dtype=torch.uint8)


@register_fake("bfloat16_linear")
def _fake_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    packed: Tensor | None = None,
) -> Tensor:
    return _fake(x, weight, residual)


@register_fake("bfloat16_feed_forward")
def _fake_feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    fc1_packed: Tensor | None = None,
    fc2_packed: Tensor | None = None,
) -> Tensor:
    return _fake(x, fc2_weight, residual)


@register_fake("bfloat16_pointwise_feed_forward")
def _fake_pointwise_feed_forward(x: Tensor, residual: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(residual.shape)


@register_fake("split_feed_forward_backward")
def _fake_feed_forward_backward(
    dy: Tensor,
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    quick: bool,
    want_input: bool,
) -> tuple[Tensor, ...]:
    (hidden, _), out = fc1_weight.shape, fc2_weight.shape[0]
    shapes = (x.shape[0] if want_input else 0, x.shape[1]), fc1_weight.shape, (hidden,)
    return tuple(x.new_empty(shape) for shape in (*shapes, fc2_weight.shape, (out,)))


def _fake(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    dtype = x.dtype if residual is None else residual.dtype
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)
