"""Matrix products with their neighbours: activation and residual."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, onednn, reference, triton
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake
from ..once import once_differentiable

_ACTIVATIONS = ("gelu", "quick_gelu")


class _RowsLinear(torch.autograd.Function):
    """``[residual +] x weightᵀ + bias`` with the products of rows by ``onednn``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        return _rows_linear(x, weight, bias, None, residual)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, *_ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        want_x, want_weight, want_bias, want_residual = ctx.needs_input_grad
        dresidual = dy if want_residual else None
        dy = onednn.rows(dy).to(x.dtype)
        dx = onednn.product(dy, weight.t()).view(x.shape) if want_x else None
        if not want_weight:
            return dx, None, dy.sum(0) if want_bias else None, dresidual
        gradients = onednn.weight_gradient(dy, onednn.rows(x))
        dweight, dbias = (d.to(x.dtype) for d in gradients)
        return dx, dweight, dbias if want_bias else None, dresidual


def _rows_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """Without gradients."""
    residual = None if residual is None else onednn.rows(residual)
    y = onednn.product(onednn.rows(x), weight, bias, activation or "", residual)
    # Not a view: autograd lets nobody write to those a Function returns.
    return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], weight.shape[0]))


def _cpu_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    if not onednn.serves(x, weight):
        return reference.linear(x, weight, bias, activation=activation, residual=residual)
    if not needs_grad(x, weight, bias, residual):
        return _rows_linear(x, weight, bias, activation, residual)
    if activation is None:
        return _RowsLinear.apply(x, weight, bias, residual)
    y = _RowsLinear.apply(x, weight, bias, None)
    if activation == "gelu":
        y = F.gelu(y)
    elif y.dtype == torch.bfloat16:  # with one rounding less
        y = y * torch.sigmoid(onednn.QUICK * y)
    else:
        y = F.silu(onednn.QUICK * y) * (1 / onednn.QUICK)
    return y if residual is None else residual + y


def _cpu_declines(x: Tensor, *_: Any, **__: Any) -> str | None:
    return None if x.device.type == "cpu" else f"x is on {x.device}"


class _TritonLinear(torch.autograd.Function):
    """``[residual +] activation(x weightᵀ + bias)``; keeps what the activation was applied to."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return kernels("triton").linear(x, weight, bias, activation, residual, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, ctx.activation, _ = inputs
        _, z = output
        ctx.save_for_backward(x, weight, z)
        ctx.mark_non_differentiable(z)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if dy is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        x, weight, z = ctx.saved_tensors
        want_x, want_weight, want_bias, _, want_residual = ctx.needs_input_grad
        dz, _, db = _before_activation(
            dy, z, ctx.activation, x.dtype, want_x or want_weight, False, want_bias
        )
        return (
            torch.mm(dz, weight).view(x.shape) if want_x else None,
            torch.mm(dz.t(), onednn.rows(x)) if want_weight else None,
            db,
            None,
            dy if want_residual else None,
        )


def _before_activation(
    dy: Tensor,
    z: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    want_dz: bool,
    want_hidden: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of ``z`` (as rows) and of the bias in it, and ``activation(z)`` again."""
    dy = onednn.rows(dy)
    as_is = not activation and dy.dtype == dtype
    if (as_is or not want_dz) and not want_bias:
        return dy, dy, None
    dz, hidden, db = kernels("triton").activation_backward(
        dy,
        z if activation else None,
        activation,
        dtype,
        want_dz and not as_is,
        want_hidden,
        want_bias,
    )
    return dy if as_is else dz, hidden, db if want_bias else None


def _triton_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    if needs_grad(x, weight, bias, residual):
        return _TritonLinear.apply(x, weight, bias, activation or "", residual)[0]
    return kernels("triton").linear(x, weight, bias, activation or "", residual, False)[0]


def _triton_declines(
    x: Tensor, *layers: Tensor | None, residual: Tensor | None = None, **_: Any
) -> str | None:
    if any(t is not None and t.numel() == 0 for t in layers):
        return "a layer has no channels"
    reason = triton.declines(x)
    return reason if reason or residual is None else triton.declines(residual, "residual")


@register_fake("linear")
def _fake_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    shape = (*x.shape[:-1], weight.shape[0])
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape if save and activation else 0)


@register_fake("activation_backward")
def _fake_activation_backward(
    dy: Tensor,
    z: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    want_input: bool,
    want_hidden: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        dy.new_empty(dy.shape if want_input else 0, dtype=dtype),
        dy.new_empty(dy.shape if want_hidden else 0, dtype=dtype),
        dy.new_empty(dy.shape[-1] if want_bias else 0, dtype=dtype),
    )


_linear = Operator(
    "linear",
    cpu=Implementation(_cpu_linear, _cpu_declines),
    triton=Implementation(_triton_linear, _triton_declines),
    reference=Implementation(reference.linear, always),
)


def _check_affine(
    operator: str, x: Tensor, weight: Tensor, bias: Tensor | None, prefix: str = ""
) -> None:
    checks.shape(operator, f"{prefix}weight", weight, ["C_out", x.shape[-1]])
    if bias is not None:
        checks.shape(operator, f"{prefix}bias", bias, [weight.shape[0]])


def _check_activation(
    operator: str, activation: str | None, known: tuple[str | None, ...] = _ACTIVATIONS
) -> None:
    if activation not in known:
        wanted = " or ".join(map(repr, known))
        raise ValueError(f"{operator}: activation: expected {wanted}, got {activation!r}")


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``[residual +] activation(x weightᵀ + bias)``; ``F.linear`` with its neighbours.

    Args:
        x: ``[..., C_in]``.
        weight: ``[C_out, C_in]``.
        bias: ``[C_out]``.
        activation: ``"gelu"`` (the exact, erf form), ``"quick_gelu"`` (``x sigmoid(1.702 x)``) or
            ``None``.
        residual: ``[..., C_out]``, added last; autocast leaves it as it is.

    Returns:
        ``[..., C_out]`` in ``x``'s dtype, or the wider one of ``x`` and ``residual``.

    Raises:
        ValueError: a shape, device or activation that does not fit.
        TypeError: a dtype that does not fit.
    """
    checks.floating("linear", "x", x)
    checks.at_least_1d("linear", "x", x)
    _check_affine("linear", x, weight, bias)
    _check_activation("linear", activation, (*_ACTIVATIONS, None))
    if residual is not None:
        checks.shape("linear", "residual", residual, [*x.shape[:-1], weight.shape[0]])
    residual = checks.apart(residual, x)
    x, weight, bias = checks.autocast(x, weight, bias)
    checks.alike("linear", ("x", x), weight=weight, bias=bias)
    checks.alongside("linear", ("x", x), residual=residual)
    return _linear(x, weight, bias, activation=activation, residual=residual)
