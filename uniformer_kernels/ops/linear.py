"""Matrix products with their neighbours: LayerNorm, activation and residual."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import bfloat16, checks, onednn, reference, triton
from ..backends import Implementation, Operator, always, chosen_backend, needs_grad
from ..kernels import kernels, register_fake
from ..once import once_differentiable
from .layer_norm import check_norm, norm_backward, norm_declines, normalised

_ACTIVATIONS = ("gelu", "quick_gelu")


class _RowsLinear(torch.autograd.Function):
    """``[residual +] layer_norm(x) weightᵀ + bias`` with the products of rows by ``onednn``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, mean, rstd = normalised("cpu", x, norm_weight, norm_bias, eps)
        return _rows_linear(h.to(weight.dtype), weight, bias, None, residual), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        *norm, ctx.eps, weight, _, _ = inputs
        _, *statistics = output
        ctx.save_for_backward(*norm, *statistics, weight)
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if dy is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        *norm, mean, rstd, weight = ctx.saved_tensors
        *want_norm, _, want_weight, want_bias, want_residual = ctx.needs_input_grad
        dresidual = dy if want_residual else None
        x, dy = norm[0], onednn.rows(dy).to(weight.dtype)
        dh = onednn.product(dy, weight.t()).view(x.shape) if any(want_norm) else None
        dnorm, h = norm_backward(
            "cpu", dh, *norm, mean, rstd, ctx.eps, want_norm, again=want_weight
        )
        dweight, dbias = None, dy.sum(0) if want_bias and not want_weight else None
        if want_weight:
            gradients = onednn.weight_gradient(dy, onednn.rows(h).to(weight.dtype))
            dweight, dbias = (d.to(weight.dtype) for d in gradients)
        return *dnorm, None, dweight, dbias if want_bias else None, dresidual


def _rows_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    packed: Tensor | None = None,
) -> Tensor:
    """Without gradients."""
    residual = None if residual is None else onednn.rows(residual)
    y = onednn.product(onednn.rows(x), weight, bias, activation or "", residual, packed)
    # Not a view: autograd lets nobody write to those a Function returns.
    return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], weight.shape[0]))


def _cpu_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    compute = _onednn_linear if onednn.serves(weight, x) else reference.linear
    return compute(x, weight, bias, **options)


def _onednn_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    norm = norm_weight, norm_bias, eps
    if not needs_grad(x, norm_weight, norm_bias, weight, bias, residual):
        h, *_ = normalised("cpu", x, *norm)
        return _rows_linear(h.to(weight.dtype), weight, bias, activation, residual)
    if activation is None:
        return _RowsLinear.apply(x, *norm, weight, bias, residual)[0]
    y, *_ = _RowsLinear.apply(x, *norm, weight, bias, None)
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
    """``[residual +] activation(layer_norm(x) weightᵀ + bias)``.

    Keeps what the activation was applied to.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
        activation: str,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, *statistics = normalised("triton", x, norm_weight, norm_bias, eps)
        h = h.to(weight.dtype)
        return *kernels("triton").linear(h, weight, bias, activation, residual, True), *statistics

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        *norm, ctx.eps, weight, _, ctx.activation, _ = inputs
        _, z, *statistics = output
        ctx.save_for_backward(*norm, *statistics, weight, z)
        ctx.mark_non_differentiable(z, *statistics)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if dy is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        *norm, mean, rstd, weight, z = ctx.saved_tensors
        *want_norm, _, want_weight, want_bias, _, want_residual = ctx.needs_input_grad
        want_h = any(want_norm)
        dz, _, db = _before_activation(
            dy, z, ctx.activation, weight.dtype, want_h or want_weight, False, want_bias
        )
        dh = torch.mm(dz, weight).view(norm[0].shape) if want_h else None
        dnorm, h = norm_backward(
            "triton", dh, *norm, mean, rstd, ctx.eps, want_norm, again=want_weight
        )
        return (
            *dnorm,
            None,
            torch.mm(dz.t(), onednn.rows(h).to(weight.dtype)) if want_weight else None,
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
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    norm, layer = (norm_weight, norm_bias, eps), (weight, bias, activation or "", residual)
    if needs_grad(x, norm_weight, norm_bias, weight, bias, residual):
        return _TritonLinear.apply(x, *norm, *layer)[0]
    h = normalised("triton", x, *norm)[0].to(weight.dtype)
    return kernels("triton").linear(h, *layer, False)[0]


def _triton_declines(
    x: Tensor,
    *layers: Tensor | None,
    norm_weight: Tensor | None = None,
    residual: Tensor | None = None,
    **_: Any,
) -> str | None:
    if any(t is not None and t.numel() == 0 for t in layers):
        return "a layer has no channels"
    return (
        (triton.declines(x) if norm_weight is None else norm_declines(x))
        or triton.declines(layers[0], "weight")  # narrower than x where autocast is on
        or (None if residual is None else triton.declines(residual, "residual"))
    )


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


def _autocast(
    operator: str, x: Tensor, norm_weight: Tensor | None, **layers: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The tensors under autocast, which leaves an ``x`` that is normalised first as it is."""
    like, *layers_ = checks.autocast(x if norm_weight is None else x.new_empty(0), *layers.values())
    checks.alike(operator, ("x", like), **dict(zip(layers, layers_, strict=True)))
    return like if norm_weight is None else x, *layers_


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """``[residual +] activation(x weightᵀ + bias)``; ``F.linear`` with its neighbours.

    With a ``norm_weight`` it is ``layer_norm(x)`` that is multiplied, and ``x`` that is kept for
    backward: the normalised tensor is made again there.

    Args:
        x: ``[..., C_in]``; autocast leaves one that is normalised as it is.
        weight: ``[C_out, C_in]``.
        bias: ``[C_out]``.
        norm_weight: ``[C_in]``, LayerNorm's; ``None`` for no norm.
        norm_bias: ``[C_in]``.
        eps: LayerNorm's.
        activation: ``"gelu"`` (the exact, erf form), ``"quick_gelu"`` (``x sigmoid(1.702 x)``) or
            ``None``.
        residual: ``[..., C_out]``, added last; autocast leaves it as it is.
        packed: ``pack_linear(weight, bias)``, which inference on a CPU multiplies by in their
            place; the caller answers for their still being the same.

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
    norm = {"norm_weight": norm_weight, "norm_bias": norm_bias, "eps": eps}
    check_norm("linear", x, norm_weight, norm_bias, "norm_")
    x, weight, bias = _autocast("linear", x, norm_weight, weight=weight, bias=bias)
    checks.alongside("linear", ("x", x), residual=residual)
    if uses_packed((packed,), x, weight, bias, norm_weight, norm_bias, residual):
        h = normalised("cpu", x, *norm.values())[0].to(weight.dtype)
        return _rows_linear(h, weight, bias, activation, residual, packed)
    return _linear(x, weight, bias, **norm, activation=activation, residual=residual)


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """A linear layer as this processor's kernels multiply by it, for many calls of inference.

    Args:
        weight: ``[C_out, C_in]``.
        bias: ``[C_out]``.

    Returns:
        What ``linear`` and ``feed_forward`` take as ``packed``, bytes; ``None`` where they would
        make no use of it: off the CPU, and for a dtype that is multiplied as it lies.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    checks.floating("pack_linear", "weight", weight)
    checks.shape("pack_linear", "weight", weight, ["C_out", "C_in"])
    if bias is not None:
        checks.shape("pack_linear", "bias", bias, [weight.shape[0]])
    checks.alike("pack_linear", ("weight", weight), bias=bias)
    if not (onednn.serves(weight) and bfloat16.multiplies(weight.dtype)):
        return None
    return bfloat16.pack(weight.detach(), None if bias is None else bias.detach())


def uses_packed(packed: tuple[Tensor | None, ...], x: Tensor, *others: Tensor | None) -> bool:
    """Whether a call multiplies by what is packed: on a CPU, without gradients."""
    if all(t is None for t in packed) or chosen_backend() not in (None, "cpu"):
        return False
    return onednn.serves(x) and not needs_grad(x, *others)
