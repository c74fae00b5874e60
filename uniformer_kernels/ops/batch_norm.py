"""Batch statistics, and batch normalisation as a part of the linear layer behind it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _extension, checks, reference, triton
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake
from ..once import once_differentiable

_NAME = "moments"
_FOLD = "fold_batch_norm"


class _WithMoments(torch.autograd.Function):
    """A backend's kernels, differentiable once; the shift is taken as a constant.

    The gradient of ``x`` beside its moments is what theirs is put on top of: no pass adds the two.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, shift: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
        return x.view_as(x), kernels(backend).moments(_rows(x), shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, shift, ctx.backend = inputs
        ctx.save_for_backward(x, shift)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dmoments: Tensor | None) -> tuple[Tensor | None, ...]:
        if dmoments is None:  # nothing depends on them
            return dy, None, None
        x, shift = ctx.saved_tensors
        dx = kernels(ctx.backend).moments_backward(
            None if dy is None else _rows(dy), _rows(x), shift, dmoments.contiguous()
        )
        return dx.view(x.shape), None, None


class _FoldBatchNorm(torch.autograd.Function):
    """The Triton kernels, differentiable once; the mean is taken as a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor,
        bias: Tensor | None,
        mean: Tensor | None,
        statistics: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        count: int | None,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return kernels("triton").fold_batch_norm(
            weight, bias, mean, statistics, norm_weight, norm_bias, count, eps
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        weight, bias, mean, statistics, norm_weight, norm_bias, *ctx.options = inputs
        found = output[2]
        ctx.mark_non_differentiable(found)
        ctx.set_materialize_grads(False)
        ctx.biased = bias is not None
        # The running mean moves on before backward, the batch's does not.
        mean = mean if ctx.options[0] is None else found
        ctx.save_for_backward(weight, mean, statistics, norm_weight, norm_bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dfolded: Tensor | None, dfolded_bias: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        weight, mean, statistics, *affine = ctx.saved_tensors
        mean = mean if ctx.options[0] is None else mean[0]
        dweight, dstatistics, *daffine = kernels("triton").fold_batch_norm_backward(
            dfolded, dfolded_bias, weight, mean, statistics, *affine, *ctx.options
        )
        daffine = [d if t is not None else None for d, t in zip(daffine, affine, strict=True)]
        dbias = dfolded_bias if ctx.biased else None
        return dweight, dbias, None, dstatistics, *daffine, None, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _kernel(backend: str, x: Tensor, *, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    shift = None if shift is None else shift.contiguous()
    if needs_grad(x):
        return _WithMoments.apply(x, shift, backend)
    return x, kernels(backend).moments(_rows(x), shift)


def _reference(x: Tensor, *, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return x, reference.moments(x, shift=shift)


def _cpu_declines(x: Tensor, **_: Any) -> str | None:
    if _extension.missing is not None:
        return _extension.missing
    return None if x.device.type == "cpu" else f"x is on {x.device}"


def _triton_declines(x: Tensor, **_: Any) -> str | None:
    return triton.declines(x)


@register_fake(_NAME)
def _fake(x: Tensor, shift: Tensor | None) -> Tensor:
    return x.new_empty(2, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


@register_fake(f"{_NAME}_backward")
def _fake_backward(dy: Tensor | None, x: Tensor, shift: Tensor | None, dmoments: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _fold(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None,
    statistics: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    *,
    count: int | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    inputs = weight, bias, mean, statistics, norm_weight, norm_bias, count, eps
    if needs_grad(weight, bias, statistics, norm_weight, norm_bias):
        *folded, found = _FoldBatchNorm.apply(*inputs)
    else:
        *folded, found = kernels("triton").fold_batch_norm(*inputs)
    return *folded, None if count is None else found


def _fold_cpu_declines(weight: Tensor, *_: Any, **__: Any) -> str | None:
    return None if weight.device.type == "cpu" else f"weight is on {weight.device}"


def _fold_triton_declines(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None,
    statistics: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    **_: Any,
) -> str | None:
    tensors = {"weight": weight, "bias": bias, "mean": mean, "statistics": statistics}
    tensors |= {"norm_weight": norm_weight, "norm_bias": norm_bias}
    reasons = (triton.declines(t, name) for name, t in tensors.items() if t is not None)
    return next((reason for reason in reasons if reason), None)


@register_fake(_FOLD)
def _fake_fold(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None,
    statistics: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    count: int | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    found = statistics.new_empty(0 if count is None else (2, weight.shape[1]), dtype=torch.float32)
    return weight.new_empty(weight.shape), weight.new_empty(weight.shape[0]), found


@register_fake(f"{_FOLD}_backward")
def _fake_fold_backward(
    dfolded: Tensor | None,
    dfolded_bias: Tensor | None,
    weight: Tensor,
    mean: Tensor | None,
    statistics: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    count: int | None,
    eps: float,
) -> tuple[Tensor, ...]:
    return (
        weight.new_empty(weight.shape),
        statistics.new_empty(statistics.shape),
        *(
            weight.new_empty(0) if t is None else t.new_empty(t.shape)
            for t in (norm_weight, norm_bias)
        ),
    )


_moments = Operator(
    _NAME,
    cpu=Implementation(partial(_kernel, "cpu"), _cpu_declines),
    triton=Implementation(partial(_kernel, "triton"), _triton_declines),
    reference=Implementation(_reference, always),
)

_fold_batch_norm = Operator(
    _FOLD,
    # A CPU's few numbers are not worth a kernel of their own.
    cpu=Implementation(reference.fold_batch_norm, _fold_cpu_declines),
    triton=Implementation(_fold, _fold_triton_declines),
    reference=Implementation(reference.fold_batch_norm, always),
)


def moments(x: Tensor, *, shift: Tensor | None = None) -> Tensor:
    """Every channel's sums of ``x - shift`` and of its square, for batch statistics.

    With ``n`` values a channel, ``mean = shift + m[0] / n`` and
    ``variance = m[1] / n - (m[0] / n) ** 2``; a shift near the mean keeps the digits.

    Args:
        x: ``[..., C]``, any strides.
        shift: ``[C]`` float32 (float64 for float64), a constant; ``None`` for zeros.

    Returns:
        ``[2, C]``, float32 (float64 for float64).

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    return with_moments(x, shift=shift)[1]


def with_moments(x: Tensor, *, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``x`` and its ``moments``: where this ``x`` is used, no pass adds both gradients up."""
    checks.floating(_NAME, "x", x)
    checks.at_least_1d(_NAME, "x", x)
    check_shift(_NAME, x, shift)
    return _moments(x, shift=shift)


def check_shift(operator: str, x: Tensor, shift: Tensor | None) -> None:
    """``shift`` fits sums over ``x``'s last axis."""
    if shift is None:
        return
    checks.shape(operator, "shift", shift, [x.shape[-1]])
    wide = torch.promote_types(x.dtype, torch.float32)
    if shift.dtype != wide:
        raise TypeError(f"{operator}: shift: expected {wide} for {x.dtype}, got {shift.dtype}")
    if shift.device != x.device:
        raise ValueError(f"{operator}: shift: expected on {x.device}, got {shift.device}")


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None,
    statistics: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    count: int | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The linear layer that computes ``layer(batch_norm(x))``: no normalised tensor is written.

    With ``scale = norm_weight / sqrt(variance + eps)`` its weight is ``weight * scale`` and its
    bias ``bias + weight @ (norm_bias - mean * scale)``. Dtypes may differ.

    Args:
        weight: ``[out, C]``, any strides.
        bias: ``[out]``.
        mean: ``[C]``, a constant: it gets no gradient; ``None`` for zeros.
        statistics: ``[C]``, the variance; or, with ``count``, what ``moments(x, shift=mean)``
            gave, ``[2, C]``: the norm then is by the batch's own mean and variance.
        norm_weight: ``[C]``, ``None`` for ones.
        norm_bias: ``[C]``, ``None`` for zeros.
        count: of the batch's values per channel, at least 2.
        eps: what is added to the variance.

    Returns:
        Weight and bias, contiguous, in ``weight``'s dtype, computed in float32 at least; then with
        ``count`` the batch's mean and its unbiased variance, ``[2, C]``, without gradient, as
        running statistics want them, else ``None``.

    Raises:
        ValueError: a shape, count or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    checks.shape(_FOLD, "weight", weight, ["out", "C"])
    checks.floating(_FOLD, "weight", weight)
    out, C = weight.shape
    vectors = {"mean": mean, "norm_weight": norm_weight, "norm_bias": norm_bias}
    for name, t in vectors.items():
        if t is not None:
            checks.shape(_FOLD, name, t, [C])
    if bias is not None:
        checks.shape(_FOLD, "bias", bias, [out])
    checks.shape(_FOLD, "statistics", statistics, [C] if count is None else [2, C])
    checks.alongside(_FOLD, ("weight", weight), bias=bias, statistics=statistics, **vectors)
    if count is not None and count < 2:
        raise ValueError(f"{_FOLD}: count: expected at least 2, got {count}")
    return _fold_batch_norm(
        weight, bias, mean, statistics, norm_weight, norm_bias, count=count, eps=eps
    )
