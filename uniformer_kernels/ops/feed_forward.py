"""Feed-forward networks: two linear layers with an activation between, fused where narrow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, onednn, reference
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake
from ..once import once_differentiable
from .linear import (
    _before_activation,
    _check_activation,
    _check_affine,
    _cpu_declines,
    _triton_declines,
)

_NARROW, _NARROW_HIDDEN = 128, 512  # channels that stay on a GPU's chip at once


def _cpu_feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    activation: str = "gelu",
    residual: Tensor | None = None,
) -> Tensor:
    tensors = (x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    if not onednn.serves(x, fc1_weight, fc2_weight):
        return reference.feed_forward(*tensors, activation=activation, residual=residual)
    return _fused("cpu", *tensors, activation, residual)


def _fused(backend: str, *args: Any) -> Tensor:
    if needs_grad(*(t for t in args if isinstance(t, Tensor))):
        return _FeedForward.apply(*args, backend)
    return kernels(backend).feed_forward(*args)


class _FeedForward(torch.autograd.Function):
    """A backend's kernels; backward computes the hidden activations again. Keeps ``x`` only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        fc1_weight: Tensor,
        fc1_bias: Tensor | None,
        fc2_weight: Tensor,
        fc2_bias: Tensor | None,
        activation: str,
        residual: Tensor | None,
        backend: str,
    ) -> Tensor:
        return kernels(backend).feed_forward(
            x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation, residual
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, _, ctx.activation, _, ctx.backend = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        want_x, *want_parameters, _, want_residual, _ = ctx.needs_input_grad
        want_weights = any(want_parameters)
        gradients = kernels(ctx.backend).feed_forward_backward(
            dy, *ctx.saved_tensors, ctx.activation, want_x, want_weights
        )
        wanted = zip(gradients, (want_x, *want_parameters), strict=True)
        return (
            *(gradient if want else None for gradient, want in wanted),
            None,
            dy if want_residual else None,
            None,
        )


class _WideFeedForward(torch.autograd.Function):
    """Matrix products with fused neighbours; keeps what the activation was applied to."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        fc1_weight: Tensor,
        fc1_bias: Tensor | None,
        fc2_weight: Tensor,
        fc2_bias: Tensor | None,
        activation: str,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        triton = kernels("triton")
        hidden, z = triton.linear(x, fc1_weight, fc1_bias, activation, None, True)
        y, _ = triton.linear(hidden, fc2_weight, fc2_bias, "", residual, False)
        return y, z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, fc1_weight, _, fc2_weight, _, ctx.activation, _ = inputs
        _, z = output
        ctx.save_for_backward(x, fc1_weight, fc2_weight, z)
        ctx.mark_non_differentiable(z)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if dy is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        x, fc1_weight, fc2_weight, z = ctx.saved_tensors
        want_x, want_fc1, want_b1, want_fc2, want_b2, _, want_residual = ctx.needs_input_grad
        want_dz = want_x or want_fc1
        want_inner = want_dz or want_b1
        dout, _, db2 = _before_activation(
            dy, None, "", x.dtype, want_inner or want_fc2, False, want_b2
        )
        dx = dfc1 = db1 = dfc2 = None
        if want_inner or want_fc2:
            # Where it is not wanted, any tensor of its shape will do.
            dhidden = torch.mm(dout, fc2_weight) if want_inner else onednn.rows(z)
            dz, hidden, db1 = kernels("triton").activation_backward(
                dhidden, z, ctx.activation, x.dtype, want_dz, want_fc2, want_b1
            )
            dfc2 = torch.mm(dout.t(), hidden) if want_fc2 else None
            dfc1 = torch.mm(dz.t(), onednn.rows(x)) if want_fc1 else None
            dx = torch.mm(dz, fc1_weight).view(x.shape) if want_x else None
        return (
            dx,
            dfc1,
            db1 if want_b1 else None,
            dfc2,
            db2,
            None,
            dy if want_residual else None,
        )


def _triton_feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    activation: str = "gelu",
    residual: Tensor | None = None,
) -> Tensor:
    tensors = (x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    hidden, channels = fc1_weight.shape
    if max(channels, fc2_weight.shape[0]) <= _NARROW and hidden <= _NARROW_HIDDEN:
        return _fused("triton", *tensors, activation, residual)
    if needs_grad(*tensors, residual):
        return _WideFeedForward.apply(*tensors, activation, residual)[0]
    return _WideFeedForward.forward(*tensors, activation, residual)[0]


@register_fake("feed_forward")
def _fake(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    return x.new_empty((*x.shape[:-1], fc2_weight.shape[0]), dtype=dtype)


@register_fake("feed_forward_backward")
def _fake_backward(
    dy: Tensor,
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    activation: str,
    want_input: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (hidden, _), out = fc1_weight.shape, fc2_weight.shape[0]
    shapes = (fc1_weight.shape, (hidden,), fc2_weight.shape, (out,))
    return (
        x.new_empty(x.shape if want_input else 0),
        *(x.new_empty(shape if want_weights else 0) for shape in shapes),
    )


_feed_forward = Operator(
    "feed_forward",
    cpu=Implementation(_cpu_feed_forward, _cpu_declines),
    triton=Implementation(_triton_feed_forward, _triton_declines),
    reference=Implementation(reference.feed_forward, always),
)


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    activation: str = "gelu",
    residual: Tensor | None = None,
) -> Tensor:
    """``[residual +] fc2(activation(fc1(x)))``, every block's feed-forward network (seeds' Eq. 4).

    Args:
        x: ``[..., C]``.
        fc1_weight: ``[hidden, C]``.
        fc1_bias: ``[hidden]`` or ``None``.
        fc2_weight: ``[C_out, hidden]``.
        fc2_bias: ``[C_out]`` or ``None``.
        activation: ``"gelu"`` (the exact, erf form) or ``"quick_gelu"`` (``x sigmoid(1.702 x)``).
        residual: ``[..., C_out]``, added last; autocast leaves it as it is.

    Returns:
        ``[..., C_out]`` in ``x``'s dtype, or the wider one of ``x`` and ``residual``.

    Raises:
        ValueError: a shape, device or activation that does not fit.
        TypeError: a dtype that does not fit.
    """
    checks.floating("feed_forward", "x", x)
    checks.at_least_1d("feed_forward", "x", x)
    _check_affine("feed_forward", x, fc1_weight, fc1_bias, "fc1_")
    checks.shape("feed_forward", "fc2_weight", fc2_weight, ["C_out", fc1_weight.shape[0]])
    _check_activation("feed_forward", activation)
    if fc2_bias is not None:
        checks.shape("feed_forward", "fc2_bias", fc2_bias, [fc2_weight.shape[0]])
    if residual is not None:
        checks.shape("feed_forward", "residual", residual, [*x.shape[:-1], fc2_weight.shape[0]])
    residual = checks.apart(residual, x)
    x, fc1_weight, fc1_bias, fc2_weight, fc2_bias = checks.autocast(
        x, fc1_weight, fc1_bias, fc2_weight, fc2_bias
    )
    checks.alike(
        "feed_forward",
        ("x", x),
        fc1_weight=fc1_weight,
        fc1_bias=fc1_bias,
        fc2_weight=fc2_weight,
        fc2_bias=fc2_bias,
    )
    checks.alongside("feed_forward", ("x", x), residual=residual)
    return _feed_forward(
        x,
        fc1_weight,
        fc1_bias,
        fc2_weight,
        fc2_bias,
        activation=activation,
        residual=residual,
    )
