"""Feed-forward networks: two linear layers with an activation between, fused where narrow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, onednn, reference
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake
from ..once import once_differentiable
from .layer_norm import check_norm, norm_backward, normalised
from .linear import (
    _autocast,
    _before_activation,
    _check_activation,
    _check_affine,
    _cpu_declines,
    _triton_declines,
    uses_packed,
)

_NARROW, _NARROW_HIDDEN = 128, 512  # channels that stay on a GPU's chip at once


def _cpu_feed_forward(x: Tensor, *layers: Tensor | None, **options: Any) -> Tensor:
    fc1_weight, _, fc2_weight, _ = layers
    if not onednn.serves(fc1_weight, x, fc2_weight):
        return reference.feed_forward(x, *layers, **options)
    return _computed(_FeedForward, "cpu", x, *layers, **options)


def _triton_feed_forward(x: Tensor, *layers: Tensor | None, **options: Any) -> Tensor:
    fc1_weight, _, fc2_weight, _ = layers
    hidden, channels = fc1_weight.shape
    narrow = max(channels, fc2_weight.shape[0]) <= _NARROW and hidden <= _NARROW_HIDDEN
    function = _FeedForward if narrow else _WideFeedForward
    return _computed(function, "triton", x, *layers, **options)


def _computed(
    function: type[torch.autograd.Function],
    backend: str,
    x: Tensor,
    *layers: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "gelu",
    residual: Tensor | None = None,
) -> Tensor:
    args = (x, norm_weight, norm_bias, eps, *layers, activation, residual, backend)
    recorded = needs_grad(*(t for t in args if isinstance(t, Tensor)))
    return (function.apply if recorded else function.forward)(*args)[0]


class _FeedForward(torch.autograd.Function):
    """A backend's kernels; backward computes everything inside again. Keeps ``x`` only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        fc1_weight: Tensor,
        fc1_bias: Tensor | None,
        fc2_weight: Tensor,
        fc2_bias: Tensor | None,
        activation: str,
        residual: Tensor | None,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, mean, rstd = normalised(backend, x, norm_weight, norm_bias, eps)
        layers = fc1_weight, fc1_bias, fc2_weight, fc2_bias
        y = kernels(backend).feed_forward(h.to(fc1_weight.dtype), *layers, activation, residual)
        return y, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        *norm, ctx.eps, fc1_weight, fc1_bias, fc2_weight, _, ctx.activation, _, ctx.backend = inputs
        _, *statistics = output
        ctx.save_for_backward(*norm, *statistics, fc1_weight, fc1_bias, fc2_weight)
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if dy is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        *norm, mean, rstd, fc1_weight, fc1_bias, fc2_weight = ctx.saved_tensors
        *want_norm, _ = ctx.needs_input_grad[:4]
        *want_layers, _, want_residual, _ = ctx.needs_input_grad[4:]
        h = normalised(ctx.backend, *norm, ctx.eps)[0].to(fc1_weight.dtype)
        layers = fc1_weight, fc1_bias, fc2_weight
        dh, *dlayers = kernels(ctx.backend).feed_forward_backward(
            dy, h, *layers, ctx.activation, any(want_norm), any(want_layers)
        )
        dh = dh if any(want_norm) else None
        dnorm, _ = norm_backward(
            ctx.backend, dh, *norm, mean, rstd, ctx.eps, want_norm, again=False
        )
        wanted = zip(dlayers, want_layers, strict=True)
        return (
            *dnorm,
            None,
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
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        fc1_weight: Tensor,
        fc1_bias: Tensor | None,
        fc2_weight: Tensor,
        fc2_bias: Tensor | None,
        activation: str,
        residual: Tensor | None,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        linear = kernels(backend).linear
        h, *statistics = normalised(backend, x, norm_weight, norm_bias, eps)
        hidden, z = linear(h.to(fc1_weight.dtype), fc1_weight, fc1_bias, activation, None, True)
        y, _ = linear(hidden, fc2_weight, fc2_bias, "", residual, False)
        return y, z, *statistics

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        *norm, ctx.eps, fc1_weight, _, fc2_weight, _, ctx.activation, _, ctx.backend = inputs
        _, z, *statistics = output
        ctx.save_for_backward(*norm, *statistics, fc1_weight, fc2_weight, z)
        ctx.mark_non_differentiable(z, *statistics)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if dy is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        *norm, mean, rstd, fc1_weight, fc2_weight, z = ctx.saved_tensors
        *want_norm, _ = ctx.needs_input_grad[:4]
        want_fc1, want_b1, want_fc2, want_b2, _, want_residual, _ = ctx.needs_input_grad[4:]
        dtype, want_h = fc1_weight.dtype, any(want_norm)
        want_dz = want_h or want_fc1
        want_inner = want_dz or want_b1
        dout, _, db2 = _before_activation(
            dy, None, "", dtype, want_inner or want_fc2, False, want_b2
        )
        dh = db1 = dfc2 = None
        if want_inner or want_fc2:
            # Where it is not wanted, any tensor of its shape will do.
            dhidden = torch.mm(dout, fc2_weight) if want_inner else onednn.rows(z)
            dz, hidden, db1 = kernels(ctx.backend).activation_backward(
                dhidden, z, ctx.activation, dtype, want_dz, want_fc2, want_b1
            )
            dfc2 = torch.mm(dout.t(), hidden) if want_fc2 else None
            dh = torch.mm(dz, fc1_weight).view(norm[0].shape) if want_h else None
        dnorm, h = norm_backward(
            ctx.backend, dh, *norm, mean, rstd, ctx.eps, want_norm, again=want_fc1
        )
        return (
            *dnorm,
            None,
            torch.mm(dz.t(), onednn.rows(h).to(dtype)) if want_fc1 else None,
            db1 if want_b1 else None,
            dfc2,
            db2,
            None,
            dy if want_residual else None,
            None,
        )


@register_fake("feed_forward")
def _fake(
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
) -> tuple[Tensor, ...]:
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
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "gelu",
    residual: Tensor | None = None,
    packed: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """``[residual +] fc2(activation(fc1(x)))``, every block's feed-forward network (seeds' Eq. 4).

    With a ``norm_weight`` it is ``fc1(layer_norm(x))``; for backward ``x`` is kept, and the
    normalised tensor made again.

    Args:
        x: ``[..., C]``; autocast leaves one that is normalised as it is.
        fc1_weight: ``[hidden, C]``.
        fc1_bias: ``[hidden]`` or ``None``.
        fc2_weight: ``[C_out, hidden]``.
        fc2_bias: ``[C_out]`` or ``None``.
        norm_weight: ``[C]``, LayerNorm's; ``None`` for no norm.
        norm_bias: ``[C]``.
        eps: LayerNorm's.
        activation: ``"gelu"`` (the exact, erf form) or ``"quick_gelu"`` (``x sigmoid(1.702 x)``).
        residual: ``[..., C_out]``, added last; autocast leaves it as it is.
        packed: ``pack_linear`` of either layer, as for ``linear``.

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
    norm = {"norm_weight": norm_weight, "norm_bias": norm_bias, "eps": eps}
    check_norm("feed_forward", x, norm_weight, norm_bias, "norm_")
    x, *layers = _autocast(
        "feed_forward",
        x,
        norm_weight,
        fc1_weight=fc1_weight,
        fc1_bias=fc1_bias,
        fc2_weight=fc2_weight,
        fc2_bias=fc2_bias,
    )
    checks.alongside("feed_forward", ("x", x), residual=residual)
    if uses_packed(packed, x, layers[0], layers[2], norm_weight, norm_bias, residual):
        h, *_ = normalised("cpu", x, *norm.values())
        h = h.to(layers[0].dtype)
        return kernels("cpu").feed_forward(h, *layers, activation, residual, *packed)
    return _feed_forward(x, *layers, **norm, activation=activation, residual=residual)
