"""LayerNorm over the channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension, checks, reference, triton
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake
from ..once import once_differentiable

_NAME = "layer_norm"
_MAX_CHANNELS = 4096


class _LayerNorm(torch.autograd.Function):
    """A backend's kernels, differentiable once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        return kernels(backend).layer_norm(x, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, weight, _, _, ctx.backend = inputs
        _, mean, rstd = output
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if dy is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        x, weight, *statistics = ctx.saved_tensors
        want_input, want_weight, want_bias, *_ = ctx.needs_input_grad
        dx, dw, db, _ = kernels(ctx.backend).layer_norm_backward(
            dy, x, weight, None, *statistics, want_input, want_weight or want_bias, False
        )
        return (
            dx if want_input else None,
            dw if want_weight else None,
            db if want_bias else None,
            None,
            None,
        )


def _computed(
    backend: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    if needs_grad(x, weight, bias):
        return _LayerNorm.apply(x, weight, bias, eps, backend)[0]
    return kernels(backend).layer_norm(x, weight, bias, eps)[0]


def _triton(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    return _computed("triton", x, weight, bias, eps)


def _has_kernel(x: Tensor) -> bool:
    """Whether a CPU has kernels for it; PyTorch's serve what is left."""
    return _extension.missing is None and x.dtype != torch.float64


def cpu_layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    if _has_kernel(x):
        return _computed("cpu", x, weight, bias, eps)
    return reference.layer_norm(x, weight, bias, eps=eps)


def normalised(
    backend: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``layer_norm(x)``, and of every row the mean and 1 / deviation; without a weight just ``x``.

    For operators that normalise what they take: they keep ``x``, which a residual branch keeps
    anyway, and normalise it again in backward.
    """
    if weight is None:
        return x, x.new_empty(0), x.new_empty(0)
    if backend == "cpu" and not _has_kernel(x):
        return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
    return kernels(backend).layer_norm(x, weight, bias, eps)


def norm_backward(
    backend: str,
    dy: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    wanted: Sequence[bool],
    again: bool,
) -> tuple[Sequence[Tensor | None], Tensor | None]:
    """The gradients of ``x``, ``weight`` and ``bias`` that are wanted, and the result again."""
    norm = x, weight, bias
    if weight is None or not any(wanted):
        return (dy, None, None), normalised(backend, *norm, eps)[0] if again else None
    dy = dy.to(x.dtype)
    if backend == "cpu" and not _has_kernel(x):
        backward = torch.ops.aten.native_layer_norm_backward
        found = backward(dy, x, x.shape[-1:], mean, rstd, weight, bias, list(wanted))
        return found, normalised(backend, *norm, eps)[0] if again else None
    want_input, want_weight, want_bias = wanted
    *found, y = kernels(backend).layer_norm_backward(
        dy, *norm, mean, rstd, want_input, want_weight or want_bias, again
    )
    return tuple(t if want else None for t, want in zip(found, wanted, strict=True)), y


def check_norm(
    operator: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, prefix: str = ""
) -> None:
    """Whether these are a norm's parameters; with a ``prefix`` it is there if its weight is."""
    if prefix and weight is None and bias is not None:
        raise ValueError(f"{operator}: {prefix}bias: expected {prefix}weight with it, got None")
    for name, vector in ((f"{prefix}weight", weight), (f"{prefix}bias", bias)):
        if vector is not None:
            checks.shape(operator, name, vector, [x.shape[-1]])
            if x.element_size() > 2 or vector.dtype != torch.float32:
                checks.alike(operator, ("x", x), **{name: vector})
    checks.alongside(operator, ("x", x), **{f"{prefix}weight": weight, f"{prefix}bias": bias})


def _cpu_declines(x: Tensor, *_: Any, **__: Any) -> str | None:
    return None if x.device.type == "cpu" else f"x is on {x.device}"


def norm_declines(x: Tensor, *_: Any, **__: Any) -> str | None:
    if x.shape[-1] > _MAX_CHANNELS:
        return f"C is {x.shape[-1]}, expected at most {_MAX_CHANNELS}"
    return triton.declines(x)


@register_fake(_NAME)
def _fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    statistics = [x.new_empty(math.prod(x.shape[:-1]), dtype=torch.float32) for _ in range(2)]
    return x.new_empty(x.shape), *statistics


@register_fake(f"{_NAME}_backward")
def _fake_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    want_input: bool,
    want_weight: bool,
    want_output: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parameter = x if weight is None else weight
    size = x.shape[-1] if want_weight else 0
    return (
        x.new_empty(x.shape if want_input else 0),
        parameter.new_empty(size),
        parameter.new_empty(size),
        x.new_empty(x.shape if want_output else 0),
    )


_layer_norm = Operator(
    _NAME,
    cpu=Implementation(cpu_layer_norm, _cpu_declines),
    triton=Implementation(_triton, norm_declines),
    reference=Implementation(reference.layer_norm, always),
)


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Normalise over the last axis; ``F.layer_norm(x, x.shape[-1:], weight, bias, eps)``.

    Autocast changes nothing: the result has ``x``'s dtype, statistics are kept in float32.

    Args:
        x: ``[..., C]``, any strides.
        weight: ``[C]``, in ``x``'s dtype, or float32 beside an ``x`` of 16 bits.
        bias: ``[C]``, likewise.
        eps: added to the variance.

    Returns:
        ``[..., C]`` in ``x``'s dtype.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    checks.floating(_NAME, "x", x)
    checks.at_least_1d(_NAME, "x", x)
    check_norm(_NAME, x, weight, bias)
    return _layer_norm(x, weight, bias, eps=eps)
