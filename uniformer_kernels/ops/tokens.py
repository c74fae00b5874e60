"""Shrinking a sequence to its important tokens, and recovering it afterwards."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _extension, checks, cuda, reference, triton
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake
from ..once import once_differentiable

_SHRINK, _RECOVER = "token_shrink", "token_recover"
_WITH_IMPORTANCE = f"{_RECOVER}_with_importance"
_MAX_TOKENS = 8192  # of a sample, which one block of a GPU ranks


class _TokenShrink(torch.autograd.Function):
    """A backend's kernels, differentiable once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, importance: Tensor, keep: int, prefix: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        return kernels(backend).token_shrink(x, importance, keep, prefix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, importance, _, prefix, ctx.backend = inputs
        ctx.prefixed = 0 if prefix is None else prefix.shape[1]
        ctx.save_for_backward(x, importance, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtokens: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if dtokens is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        dx, dimportance = kernels(ctx.backend).token_shrink_backward(
            _adjacent(dtokens), *ctx.saved_tensors
        )
        return dx, dimportance, None, dtokens[:, : ctx.prefixed] if ctx.prefixed else None, None


class _TokenRecover(torch.autograd.Function):
    """A backend's kernels, differentiable once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, index: Tensor, kept: Tensor, delta: Tensor, backend: str) -> Tensor:
        return kernels(backend).token_recover(x, index, kept, delta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *_, ctx.backend = inputs
        ctx.save_for_backward(inputs[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dkept, ddelta = kernels(ctx.backend).token_recover_backward(
            _adjacent(dy), *ctx.saved_tensors
        )
        return dx, None, dkept, ddelta, None


class _WithImportance(torch.autograd.Function):
    """The same with the importance's running mean."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        index: Tensor,
        kept: Tensor,
        delta: Tensor,
        importance: Tensor,
        score: Tensor,
        trade_off: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        return kernels(backend).token_recover_with_importance(
            x, index, kept, delta, importance, score, trade_off
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, index, *_, score, ctx.trade_off, ctx.backend = inputs
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.prefixed = score.shape[1] - index.shape[1] - 1
        ctx.save_for_backward(index)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dupdated: Tensor | None) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        backend = kernels(ctx.backend)
        if dupdated is None:  # as of a model's last block
            if dy is None:
                return (None,) * len(ctx.needs_input_grad)
            dx, dkept, ddelta = backend.token_recover_backward(_adjacent(dy), index)
            return dx, None, dkept, ddelta, None, None, None, None
        dy = dupdated.new_zeros(ctx.shape, dtype=ctx.dtype) if dy is None else _adjacent(dy)
        dx, dkept, ddelta, dimportance, dscore = backend.token_recover_with_importance_backward(
            dy, dupdated.contiguous(), index, ctx.prefixed, ctx.trade_off
        )
        return dx, None, dkept, ddelta, dimportance, dscore, None, None


def _adjacent(t: Tensor) -> Tensor:
    """The tensor with what belongs to a token, or sample, side by side, as the kernels read it."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _shrink(
    backend: str, x: Tensor, importance: Tensor, keep: int, *, prefix: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    prefix = None if prefix is None else _adjacent(prefix)
    inputs = _adjacent(x), importance.contiguous(), keep, prefix
    if needs_grad(x, importance, prefix):
        return _TokenShrink.apply(*inputs, backend)
    return kernels(backend).token_shrink(*inputs)


def _recover(backend: str, x: Tensor, index: Tensor, kept: Tensor, delta: Tensor) -> Tensor:
    inputs = _adjacent(x), index.contiguous(), _adjacent(kept), _adjacent(delta)
    if needs_grad(x, kept, delta):
        return _TokenRecover.apply(*inputs, backend)
    return kernels(backend).token_recover(*inputs)


def _recover_with_importance(
    backend: str,
    x: Tensor,
    index: Tensor,
    kept: Tensor,
    delta: Tensor,
    importance: Tensor,
    score: Tensor,
    *,
    trade_off: float = 0.5,
) -> tuple[Tensor, Tensor]:
    floating = x, kept, delta, importance, score
    x, *others = map(_adjacent, floating)
    inputs = x, index.contiguous(), *others, trade_off
    if needs_grad(*floating):
        return _WithImportance.apply(*inputs, backend)
    return kernels(backend).token_recover_with_importance(*inputs)


def _cpu_declines(x: Tensor, *_: Any, **__: Any) -> str | None:
    if _extension.missing is not None:
        return _extension.missing
    return None if x.device.type == "cpu" else f"x is on {x.device}"


def _too_many(x: Tensor) -> str | None:
    N = x.shape[1]
    return f"N is {N}, expected at most {_MAX_TOKENS}" if N > _MAX_TOKENS else None


def _cuda_declines(x: Tensor, *_: Any, **__: Any) -> str | None:
    return _too_many(x) or cuda.declines(x)


def _triton_declines(x: Tensor, *_: Any, **__: Any) -> str | None:
    return _too_many(x) or triton.declines(x)


@register_fake(_SHRINK)
def _fake_shrink(
    x: Tensor, importance: Tensor, keep: int, prefix: Tensor | None
) -> tuple[Tensor, Tensor]:
    B, _, C = x.shape
    prefixed = 0 if prefix is None else prefix.shape[1]
    return x.new_empty(B, prefixed + keep + 1, C), x.new_empty(B, keep, dtype=torch.int64)


@register_fake(f"{_SHRINK}_backward")
def _fake_shrink_backward(
    dtokens: Tensor, x: Tensor, importance: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), importance.new_empty(importance.shape)


@register_fake(_RECOVER)
def _fake_recover(x: Tensor, index: Tensor, kept: Tensor, delta: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@register_fake(f"{_RECOVER}_backward")
def _fake_recover_backward(dy: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    B, _, C = dy.shape
    return dy.new_empty(dy.shape), dy.new_empty(B, index.shape[1], C), dy.new_empty(B, 1, C)


@register_fake(_WITH_IMPORTANCE)
def _fake_with_importance(
    x: Tensor,
    index: Tensor,
    kept: Tensor,
    delta: Tensor,
    importance: Tensor,
    score: Tensor,
    trade_off: float,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), importance.new_empty(importance.shape)


@register_fake(f"{_WITH_IMPORTANCE}_backward")
def _fake_with_importance_backward(
    dy: Tensor, dupdated: Tensor, index: Tensor, prefixed: int, trade_off: float
) -> tuple[Tensor, ...]:
    B, K = index.shape
    return (
        *_fake_recover_backward(dy, index),
        dupdated.new_empty(dupdated.shape),
        dupdated.new_empty(B, prefixed + K + 1),
    )


_token_shrink = Operator(
    _SHRINK,
    cpu=Implementation(partial(_shrink, "cpu"), _cpu_declines),
    cuda=Implementation(partial(_shrink, "cuda"), _cuda_declines, cuda.tokens_yield),
    triton=Implementation(partial(_shrink, "triton"), _triton_declines),
    reference=Implementation(reference.token_shrink, always),
)
_token_recover = Operator(
    _RECOVER,
    cpu=Implementation(partial(_recover, "cpu"), _cpu_declines),
    cuda=Implementation(partial(_recover, "cuda"), _cuda_declines, cuda.tokens_yield),
    triton=Implementation(partial(_recover, "triton"), _triton_declines),
    reference=Implementation(reference.token_recover, always),
)
_token_recover_with_importance = Operator(
    _WITH_IMPORTANCE,
    cpu=Implementation(partial(_recover_with_importance, "cpu"), _cpu_declines),
    cuda=Implementation(
        partial(_recover_with_importance, "cuda"), _cuda_declines, cuda.tokens_yield
    ),
    triton=Implementation(partial(_recover_with_importance, "triton"), _triton_declines),
    reference=Implementation(reference.token_recover_with_importance, always),
)


def token_shrink(
    x: Tensor, importance: Tensor, keep: int, *, prefix: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Keep the most important tokens and merge the others into one representative.

    The representative is the mean of the other tokens weighted by their importance, and their
    plain mean where all of it is 0; gradients reach the importance through these weights. Kept
    tokens stay in their order, for attention sees a set (TPAMI 2023, section 3.4; Evo-ViT sorts).

    Args:
        x: ``[B, N, C]``, any strides.
        importance: ``[B, N]``, not negative, float32 (float64 for float64). Of equal ones the
            lower index is kept first.
        keep: tokens to keep, at least 0 and fewer than ``N``.
        prefix: ``[B, P, C]``, tokens to put in front.

    Returns:
        ``[B, P + keep + 1, C]``, the prefix, the kept tokens and the representative, in ``x``'s
        dtype; and ``[B, keep]`` int64, where the kept ones stood in ``x``, ascending.

    Raises:
        ValueError: a shape or device that does not fit, or ``keep`` out of range.
        TypeError: a dtype that does not fit.
    """
    checks.shape(_SHRINK, "x", x, ["B", "N", "C"])
    checks.floating(_SHRINK, "x", x)
    checks.shape(_SHRINK, "importance", importance, x.shape[:2])
    checks.alike(_SHRINK, ("x", x), prefix=prefix)
    _check_wide(_SHRINK, x, importance=importance)
    if prefix is not None:
        checks.shape(_SHRINK, "prefix", prefix, [x.shape[0], "P", x.shape[2]])
    if not 0 <= keep < x.shape[1]:
        raise ValueError(
            f"{_SHRINK}: keep: expected 0 <= keep < N, got {keep} with x {list(x.shape)}"
        )
    return _token_shrink(x, importance, keep, prefix=prefix)


def token_recover(x: Tensor, index: Tensor, kept: Tensor, delta: Tensor) -> Tensor:
    """Put kept tokens back among the others, which change as their representative did.

    Plain PyTorch: ``(x + delta).scatter(1, index.unsqueeze(2).expand_as(kept), kept)``.

    Args:
        x: ``[B, N, C]``, the tokens ``token_shrink`` had.
        index: ``[B, K]`` int64, ascending, as ``token_shrink`` returned it.
        kept: ``[B, K, C]``, the kept tokens' new values, any strides.
        delta: ``[B, 1, C]``, what to add to the others.

    Returns:
        ``[B, N, C]``, contiguous, in ``x``'s dtype.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    _check_recovered(_RECOVER, x, index, kept, delta)
    return _token_recover(x, index, kept, delta)


def token_recover_with_importance(
    x: Tensor,
    index: Tensor,
    kept: Tensor,
    delta: Tensor,
    importance: Tensor,
    score: Tensor,
    *,
    trade_off: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """``token_recover``, and the importance of all tokens for the next block.

    That of the kept ones becomes a running mean: ``torch.lerp`` of what they had and their new
    score. The others keep theirs, as what their representative got is nobody's; but a single one
    is its own representative, and gets its score (TPAMI 2023, section 3.4).

    Args:
        x: ``[B, N, C]``, the tokens ``token_shrink`` had.
        index: ``[B, K]`` int64, ascending, as ``token_shrink`` returned it.
        kept: ``[B, K, C]``, the kept tokens' new values, any strides.
        delta: ``[B, 1, C]``, what to add to the others.
        importance: ``[B, N]``, float32 (float64 for float64), that ``token_shrink`` chose by.
        score: ``[B, P + K + 1]`` in ``importance``'s dtype: for each token that ``token_shrink``
            gave, its representative the last, as ``joint_attention_with_score`` finds it. What the
            ``P`` in front got is not looked at.
        trade_off: weight of the score; of the old importance it is 1 less that.

    Returns:
        ``[B, N, C]`` and ``[B, N]``, contiguous, in the dtypes of ``x`` and ``importance``.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    _check_recovered(_WITH_IMPORTANCE, x, index, kept, delta)
    checks.shape(_WITH_IMPORTANCE, "importance", importance, x.shape[:2])
    checks.shape(_WITH_IMPORTANCE, "score", score, [x.shape[0], "P + K + 1"])
    _check_wide(_WITH_IMPORTANCE, x, importance=importance, score=score)
    if score.shape[1] <= index.shape[1]:
        raise ValueError(
            f"{_WITH_IMPORTANCE}: score: expected [{x.shape[0]}, P + {index.shape[1]} + 1], "
            f"got {list(score.shape)}"
        )
    tensors = x, index, kept, delta, importance, score
    return _token_recover_with_importance(*tensors, trade_off=trade_off)


def _check_recovered(operator: str, x: Tensor, index: Tensor, kept: Tensor, delta: Tensor) -> None:
    checks.shape(operator, "x", x, ["B", "N", "C"])
    checks.floating(operator, "x", x)
    checks.shape(operator, "index", index, [x.shape[0], "K"])
    checks.shape(operator, "kept", kept, [*index.shape, x.shape[2]])
    checks.shape(operator, "delta", delta, [x.shape[0], 1, x.shape[2]])
    checks.alike(operator, ("x", x), kept=kept, delta=delta)
    if index.dtype != torch.int64:
        raise TypeError(f"{operator}: index: expected torch.int64, got {index.dtype}")
    if index.device != x.device:
        raise ValueError(f"{operator}: index: expected on {x.device} like x, got {index.device}")


def _check_wide(operator: str, x: Tensor, **tensors: Tensor) -> None:
    """The tensors are in the dtype that importance has beside ``x``, and on its device."""
    wide = torch.promote_types(x.dtype, torch.float32)
    for name, t in tensors.items():
        if t.dtype != wide:
            raise TypeError(
                f"{operator}: {name}: expected {wide} for x in {x.dtype}, got {t.dtype}"
            )
        if t.device != x.device:
            raise ValueError(f"{operator}: {name}: expected on {x.device} like x, got {t.device}")
