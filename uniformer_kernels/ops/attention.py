"""Joint spatiotemporal attention over packed queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _extension, checks, reference, triton
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake
from ..once import once_differentiable
from ..reference.attention import heads, wide_softmax

_NAME = "joint_attention"
_SCORE = "joint_attention_with_score"
_MAX_HEAD_DIM = 128  # of Triton's kernels


class _JointAttention(torch.autograd.Function):
    """A backend's kernels, differentiable once; nothing of size ``N²`` is kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(qkv: Tensor, num_heads: int, scale: float, backend: str) -> tuple[Tensor, Tensor]:
        return kernels(backend).joint_attention(qkv, num_heads, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        qkv, *ctx.options, ctx.backend = inputs
        ctx.save_for_backward(qkv, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if dout is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        dqkv = kernels(ctx.backend).joint_attention_backward(
            dout.contiguous(), *ctx.saved_tensors, *ctx.options
        )
        return dqkv, None, None, None


class _JointAttentionWithScore(torch.autograd.Function):
    """The score's gradient goes straight into the one the kernel makes of ``qkv``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        qkv: Tensor, num_heads: int, queries: int | None, scale: float, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _with_score(backend, queries)[0](qkv, num_heads, queries, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        qkv, *ctx.options, ctx.backend = inputs
        out, _, lse = output
        ctx.save_for_backward(qkv, out, lse)
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dout: Tensor | None, dscore: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        qkv, out, lse = ctx.saved_tensors
        dout = torch.zeros_like(out) if dout is None else dout.contiguous()
        dscore = lse.new_zeros(qkv.shape[:2]) if dscore is None else dscore.contiguous()
        _, backward = _with_score(ctx.backend, ctx.options[1])
        dqkv = backward(dout, dscore, qkv, out, lse, *ctx.options)
        return dqkv, None, None, None, None


def _with_score(
    backend: str, queries: int | None
) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    """Forward and backward: kernels of their own, or composed around those of joint attention."""
    if backend == "cpu" and queries != 1:
        return _composed_with_score, _composed_with_score_backward
    fused = kernels(backend)
    return fused.joint_attention_with_score, fused.joint_attention_with_score_backward


def _composed_with_score(
    qkv: Tensor, num_heads: int, queries: int | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    out, lse = kernels("cpu").joint_attention(qkv, num_heads, scale)
    q, k, _ = heads(qkv, num_heads)
    return out, wide_softmax(q[:, :, :queries], k, scale).mean((1, 2)), lse


def _composed_with_score_backward(
    dout: Tensor,
    dscore: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    queries: int | None,
    scale: float,
) -> Tensor:
    dqkv = kernels("cpu").joint_attention_backward(dout, qkv, out, lse, num_heads, scale)
    q, k, _ = heads(qkv, num_heads)
    dq, dk, _ = heads(dqkv, num_heads)
    q, dq = q[:, :, :queries], dq[:, :, :queries]
    rows = wide_softmax(q, k, scale)
    dscore = dscore[:, None, None] * (scale / (num_heads * max(q.shape[2], 1)))
    drows = rows * (dscore - (rows * dscore).sum(-1, keepdim=True))
    dq += drows @ k.to(rows.dtype)
    dk += drows.mT @ q.to(rows.dtype)
    return dqkv


def adjacent(tokens: Tensor) -> Tensor:
    """``[B, N, C]`` with the channels of a token side by side, as the kernels read them."""
    return tokens if tokens.stride(2) == 1 else tokens.contiguous()


def scale_of(qkv: Tensor, num_heads: int, scale: float | None) -> float:
    return _head_dim(qkv, num_heads) ** -0.5 if scale is None else scale


def _head_dim(qkv: Tensor, num_heads: int) -> int:
    return qkv.shape[-1] // 3 // num_heads


def _kernel(backend: str, qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    qkv, scale = adjacent(qkv), scale_of(qkv, num_heads, scale)
    if needs_grad(qkv):
        return _JointAttention.apply(qkv, num_heads, scale, backend)[0]
    return kernels(backend).joint_attention(qkv, num_heads, scale)[0]


def _sdpa(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    """PyTorch's own kernels, with their own gradients."""
    q, k, v = heads(qkv, num_heads)
    y = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return y.transpose(1, 2).flatten(2)


def _kernel_with_score(
    backend: str,
    qkv: Tensor,
    num_heads: int,
    *,
    queries: int | None = 1,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    qkv, scale = adjacent(qkv), scale_of(qkv, num_heads, scale)
    if needs_grad(qkv):
        return _JointAttentionWithScore.apply(qkv, num_heads, queries, scale, backend)[:2]
    return _with_score(backend, queries)[0](qkv, num_heads, queries, scale)[:2]


def _has_cpu_kernel(qkv: Tensor) -> bool:
    return _extension.missing is None and qkv.dtype != torch.float64


def _cpu(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    compute = partial(_kernel, "cpu") if _has_cpu_kernel(qkv) else _sdpa
    return compute(qkv, num_heads, scale=scale)


def _cpu_with_score(
    qkv: Tensor, num_heads: int, *, queries: int | None = 1, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    if _has_cpu_kernel(qkv):
        return _kernel_with_score("cpu", qkv, num_heads, queries=queries, scale=scale)
    q, k, _ = heads(qkv, num_heads)
    score = wide_softmax(q[:, :, :queries], k, scale).mean((1, 2))
    return _sdpa(qkv, num_heads, scale=scale), score


def _triton(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    from ..triton.attention import hands_over, shape_class  # Triton may not be installed

    faster = hands_over(qkv.device, shape_class(qkv, num_heads, qkv.shape[1]))
    compute = _sdpa if faster else partial(_kernel, "triton")
    return compute(qkv, num_heads, scale=scale)


def _cpu_declines(qkv: Tensor, num_heads: int, **_: Any) -> str | None:
    return None if qkv.device.type == "cpu" else f"qkv is on {qkv.device}"


def _triton_declines(qkv: Tensor, num_heads: int, **_: Any) -> str | None:
    return triton.declines(qkv, "qkv") or head_dim_declines(qkv, num_heads)


def head_dim_declines(qkv: Tensor, num_heads: int) -> str | None:
    """Why no Triton kernel serves heads of this size."""
    d = _head_dim(qkv, num_heads)
    return None if d <= _MAX_HEAD_DIM else f"head_dim is {d}, expected at most {_MAX_HEAD_DIM}"


@register_fake(_NAME)
def _fake(qkv: Tensor, num_heads: int, scale: float) -> tuple[Tensor, Tensor]:
    B, N, packed = qkv.shape
    return (
        qkv.new_empty(B, N, packed // 3),
        qkv.new_empty(B, num_heads, N, dtype=torch.float32),
    )


@register_fake(f"{_NAME}_backward")
def _fake_backward(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, scale: float
) -> Tensor:
    return qkv.new_empty(qkv.shape)


@register_fake(_SCORE)
def _fake_with_score(
    qkv: Tensor, num_heads: int, queries: int | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    out, lse = _fake(qkv, num_heads, scale)
    return out, lse.new_empty(qkv.shape[:2]), lse


@register_fake(f"{_SCORE}_backward")
def _fake_with_score_backward(
    dout: Tensor,
    dscore: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    queries: int | None,
    scale: float,
) -> Tensor:
    return qkv.new_empty(qkv.shape)


_joint_attention = Operator(
    _NAME,
    cpu=Implementation(_cpu, _cpu_declines),
    triton=Implementation(_triton, _triton_declines),
    reference=Implementation(reference.joint_attention, always),
)
_joint_attention_with_score = Operator(
    _SCORE,
    cpu=Implementation(_cpu_with_score, _cpu_declines),
    triton=Implementation(partial(_kernel_with_score, "triton"), _triton_declines),
    reference=Implementation(reference.joint_attention_with_score, always),
)


def joint_attention(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    """Attend among all tokens of a clip: ``softmax(scale q kᵀ) v`` for every head (seeds' Eq. 7).

    >>> uk.joint_attention(torch.randn(2, 1568, 3 * 320), num_heads=5).shape
    torch.Size([2, 1568, 320])

    Args:
        qkv: ``[B, N, 3C]``, laid out ``[q | k | v]``, each head after head.
        num_heads: heads; ``C`` is a multiple of it.
        scale: factor on the scores, ``head_dim ** -0.5`` by default.

    Returns:
        ``[B, N, C]`` in ``qkv``'s dtype; scores, softmax and sums are float32 (float64 for
        float64).

    Raises:
        ValueError: a shape that does not fit.
        TypeError: not a floating dtype.
    """
    _check(_NAME, qkv, num_heads)
    (qkv,) = checks.autocast(qkv)
    return _joint_attention(qkv, num_heads, scale=scale)


def joint_attention_with_score(
    qkv: Tensor, num_heads: int, *, queries: int | None = 1, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """``joint_attention``, and how much attention every token gets from the first queries.

    With one query, the hourglass block's score token, this is the importance of the tokens (TPAMI
    2023, section 3.4); Evo-ViT calls it global class attention. Only these rows of the softmax
    are written out.

    Args:
        qkv: ``[B, N, 3C]``, laid out ``[q | k | v]``, each head after head.
        num_heads: heads; ``C`` is a multiple of it.
        queries: the mean is over heads and this many first queries; ``None`` for all of them,
            which makes ``[B, num_heads, N, N]``.
        scale: factor on the scores, ``head_dim ** -0.5`` by default.

    Returns:
        ``[B, N, C]`` in ``qkv``'s dtype, and the scores ``[B, N]`` in float32 (float64 for
        float64); a sample's sum to 1.

    Raises:
        ValueError: a shape that does not fit, or ``queries`` that are not there.
        TypeError: not a floating dtype.
    """
    _check(_SCORE, qkv, num_heads)
    if queries is not None and not 1 <= queries <= qkv.shape[1]:
        raise ValueError(
            f"{_SCORE}: queries: expected 1 <= queries <= N for qkv [B, N, 3C], "
            f"got {queries} with qkv {list(qkv.shape)}"
        )
    (qkv,) = checks.autocast(qkv)
    return _joint_attention_with_score(qkv, num_heads, queries=queries, scale=scale)


def _check(operator: str, qkv: Tensor, num_heads: int) -> None:
    checks.shape(operator, "qkv", qkv, ["B", "N", "3C"])
    checks.floating(operator, "qkv", qkv)
    if num_heads < 1 or qkv.shape[2] % (3 * num_heads):
        raise ValueError(
            f"{operator}: num_heads: expected a divisor of C for qkv [B, N, 3C], "
            f"got {num_heads} with qkv {list(qkv.shape)}"
        )
