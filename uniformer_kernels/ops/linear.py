"""Matrix products with their neighbours: activation and residual.

On a CPU PyTorch sends float32 products to MKL, which runs at half speed on AMD processors. oneDNN
reaches the peak there, and PyTorch carries it as the operator its compiler uses for frozen models;
other dtypes already go to oneDNN.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, reference
from ..backends import Implementation, Operator, always, needs_grad

_ACTIVATIONS = ("gelu", "quick_gelu")
_QUICK = 1.702  # quick_gelu(x) = x sigmoid(_QUICK x) = silu(_QUICK x) / _QUICK

_HIDDEN = 2**21  # hidden activations a feed-forward without gradients holds at once

# A private operator: without it everything still works, through F.linear.
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _uses_onednn(x: Tensor) -> bool:
    return _ONEDNN and x.dtype == torch.float32 and x.numel() > 0


def _matrix(x: Tensor) -> Tensor:
    """The matrix as oneDNN can read it, by rows or by columns: it ignores any other strides."""
    (rows, columns), (row, column) = x.shape, x.stride()
    if (column == 1 and row >= columns) or (row == 1 and column >= rows):
        return x
    return x.contiguous()


# An operator of our own around it: the compiler takes PyTorch's with constant weights only.
_LIBRARY = torch.library.Library("uniformer_kernels", "FRAGMENT")
_LIBRARY.define("product(Tensor x, Tensor weight, Tensor? bias, bool gelu) -> Tensor")


@torch.library.impl(_LIBRARY, "product", "CPU")
def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    activation = ("gelu", [], "none") if gelu else ("none", [], "")
    if bias is not None:
        bias = bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(_matrix(x), _matrix(weight), bias, *activation)


@torch.library.register_fake("uniformer_kernels::product", lib=_LIBRARY)
def _fake_product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``gelu(x weightᵀ + bias)`` of matrices, by oneDNN."""
    return torch.ops.uniformer_kernels.product(x, weight, bias, gelu)


def _weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """``dyᵀ x``; oneDNN is faster with the narrower matrix first."""
    if dy.shape[1] <= x.shape[1]:
        return _product(dy.t(), x.t())
    return _product(x.t(), dy.t()).t()


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class _Linear(torch.autograd.Function):
    """``x weightᵀ + bias`` with all three products by oneDNN."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(_rows(x), weight, bias).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad
        dy = _rows(dy)
        return (
            _product(dy, weight.t()).view(x.shape) if want_x else None,
            _weight_gradient(dy, _rows(x)) if want_weight else None,
            dy.sum(0) if want_bias else None,
        )


def _cpu_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    if not _uses_onednn(x):
        return reference.linear(x, weight, bias, activation=activation, residual=residual)
    if needs_grad(x, weight, bias, residual):
        y = _Linear.apply(x, weight, bias)
        if activation == "gelu":
            y = F.gelu(y)
        elif activation == "quick_gelu":
            y = F.silu(_QUICK * y) * (1 / _QUICK)
        return y if residual is None else residual + y
    y = _product(_rows(x), weight, bias, gelu=activation == "gelu")
    if activation == "quick_gelu":
        y = F.silu(y.mul_(_QUICK), inplace=True).mul_(1 / _QUICK)
    y = y.view(*x.shape[:-1], weight.shape[0])
    if residual is None:
        return y
    return y.add_(residual) if residual.dtype == y.dtype else residual + y


def _cpu_declines(x: Tensor, *_: Any, **__: Any) -> str | None:
    return None if x.device.type == "cpu" else f"x is on {x.device}"


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
    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        hidden = _cpu_linear(x, fc1_weight, fc1_bias, activation=activation)
        return _cpu_linear(hidden, fc2_weight, fc2_bias, residual=residual)

    rows, at_once = x.shape[:-1].numel(), max(_HIDDEN // fc1_weight.shape[0], 1)
    if rows <= at_once or needs_grad(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual):
        return run(x, residual)
    # Without gradients nothing needs all hidden activations, the widest tensor of any block.
    out = None
    for first in range(0, rows, at_once):
        part = slice(first, first + at_once)
        y = run(_rows(x)[part], None if residual is None else _rows(residual)[part])
        out = y.new_empty(rows, y.shape[1]) if out is None else out
        out[part] = y
    return out.view(*x.shape[:-1], out.shape[1])


_linear = Operator(
    "linear",
    cpu=Implementation(_cpu_linear, _cpu_declines),
    reference=Implementation(reference.linear, always),
)
_feed_forward = Operator(
    "feed_forward",
    cpu=Implementation(_cpu_feed_forward, _cpu_declines),
    reference=Implementation(reference.feed_forward, always),
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
    x, weight, bias = checks.autocast(x, weight, bias)
    checks.alike("linear", ("x", x), weight=weight, bias=bias)
    checks.alongside("linear", ("x", x), residual=residual)
    return _linear(x, weight, bias, activation=activation, residual=residual)


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
