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
from ..backends import Implementation, Operator, always

# A private operator: without it everything still works, through F.linear.
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _uses_onednn(x: Tensor) -> bool:
    return _ONEDNN and x.dtype == torch.float32 and x.numel() > 0


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``gelu(x weightᵀ + bias)`` of matrices, by oneDNN."""
    activation = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *activation)


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
    needs_grad = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias, residual)
    )
    if needs_grad:
        y = _Linear.apply(x, weight, bias)
        if activation == "gelu":
            y = F.gelu(y)
        return y if residual is None else residual + y
    y = _product(_rows(x), weight, bias, gelu=activation == "gelu")
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
    residual: Tensor | None = None,
) -> Tensor:
    hidden = _cpu_linear(x, fc1_weight, fc1_bias, activation="gelu")
    return _cpu_linear(hidden, fc2_weight, fc2_bias, residual=residual)


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
        activation: ``"gelu"`` (the exact, erf form) or ``None``.
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
    if activation not in (None, "gelu"):
        raise ValueError(f"linear: activation: expected 'gelu' or None, got {activation!r}")
    if residual is not None:
        checks.shape("linear", "residual", residual, [*x.shape[:-1], weight.shape[0]])
    x, weight, bias = checks.autocast(x, weight, bias)
    checks.alike("linear", ("x", x), weight=weight, bias=bias)
    return _linear(x, weight, bias, activation=activation, residual=residual)


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    residual: Tensor | None = None,
) -> Tensor:
    """``[residual +] fc2(gelu(fc1(x)))``, the feed-forward network of every block (seeds' Eq. 4).

    Args:
        x: ``[..., C]``.
        fc1_weight: ``[hidden, C]``.
        fc1_bias: ``[hidden]`` or ``None``.
        fc2_weight: ``[C_out, hidden]``.
        fc2_bias: ``[C_out]`` or ``None``.
        residual: ``[..., C_out]``, added last; autocast leaves it as it is.

    Returns:
        ``[..., C_out]`` in ``x``'s dtype, or the wider one of ``x`` and ``residual``.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    checks.floating("feed_forward", "x", x)
    checks.at_least_1d("feed_forward", "x", x)
    _check_affine("feed_forward", x, fc1_weight, fc1_bias, "fc1_")
    checks.shape("feed_forward", "fc2_weight", fc2_weight, ["C_out", fc1_weight.shape[0]])
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
    return _feed_forward(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual=residual)
