"""Joint spatiotemporal attention over packed queries, keys and values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _extension, checks, reference
from ..backends import Implementation, Operator, always
from ..reference.attention import heads, wide_softmax

_NAME = "joint_attention"
_SCORE = "joint_attention_with_score"


class _JointAttention(torch.autograd.Function):
    """The compiled kernels, differentiable once; nothing of size ``N²`` is kept."""

    @staticmethod
    def forward(qkv: Tensor, num_heads: int, scale: float) -> tuple[Tensor, Tensor]:
        return torch.ops.uniformer_kernels.joint_attention(qkv, num_heads, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        qkv, ctx.num_heads, ctx.scale = inputs
        ctx.save_for_backward(qkv, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        dqkv = torch.ops.uniformer_kernels.joint_attention_backward(
            dout.contiguous(), *ctx.saved_tensors, ctx.num_heads, ctx.scale
        )
        return dqkv, None, None


class _JointAttentionWithScore(torch.autograd.Function):
    """The score's gradient goes straight into the one the kernel makes of ``qkv``."""

    @staticmethod
    def forward(qkv: Tensor, num_heads: int, queries: int | None, scale: float) -> tuple:
        out, lse = torch.ops.uniformer_kernels.joint_attention(qkv, num_heads, scale)
        q, k, _ = heads(qkv, num_heads)
        rows = wide_softmax(q[:, :, :queries], k, scale)
        return out, rows.mean((1, 2)), lse, rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        qkv, ctx.num_heads, _, ctx.scale = inputs
        out, _, lse, rows = output
        ctx.save_for_backward(qkv, out, lse, rows)
        ctx.mark_non_differentiable(lse, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor, dscore: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, lse, rows = ctx.saved_tensors
        dqkv = torch.ops.uniformer_kernels.joint_attention_backward(
            dout.contiguous(), qkv, out, lse, ctx.num_heads, ctx.scale
        )
        queries = rows.shape[2]
        dscore = dscore[:, None, None] * (ctx.scale / (ctx.num_heads * queries))
        drows = rows * (dscore - (rows * dscore).sum(-1, keepdim=True))
        q, k, _ = heads(qkv, ctx.num_heads)
        dq, dk, _ = heads(dqkv, ctx.num_heads)
        dq[:, :, :queries] += drows @ k.to(rows.dtype)
        dk += drows.mT @ q[:, :, :queries].to(rows.dtype)
        return dqkv, None, None, None


def _has_kernel(qkv: Tensor) -> bool:
    return _extension.missing is None and qkv.dtype != torch.float64


def _adjacent(qkv: Tensor) -> Tensor:
    """The tensor with the channels of a token side by side, as the kernels read them."""
    return qkv if qkv.stride(2) == 1 else qkv.contiguous()


def _scale_of(d: int, scale: float | None) -> float:
    return d**-0.5 if scale is None else scale


def _cpu(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    B, N, packed = qkv.shape
    d = packed // 3 // num_heads
    if _has_kernel(qkv):
        return _JointAttention.apply(_adjacent(qkv), num_heads, _scale_of(d, scale))[0]
    q, k, v = qkv.reshape(B, N, 3, num_heads, d).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return y.transpose(1, 2).reshape(B, N, packed // 3)


def _cpu_with_score(
    qkv: Tensor, num_heads: int, *, queries: int | None = 1, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    if _has_kernel(qkv):
        scale = _scale_of(qkv.shape[2] // 3 // num_heads, scale)
        return _JointAttentionWithScore.apply(_adjacent(qkv), num_heads, queries, scale)[:2]
    q, k, _ = heads(qkv, num_heads)
    score = wide_softmax(q[:, :, :queries], k, scale).mean((1, 2))
    return _cpu(qkv, num_heads, scale=scale), score


def _cpu_declines(qkv: Tensor, num_heads: int, **_: Any) -> str | None:
    return None if qkv.device.type == "cpu" else f"qkv is on {qkv.device}"


if _extension.missing is None:

    @torch.library.register_fake(f"uniformer_kernels::{_NAME}")
    def _fake(qkv: Tensor, num_heads: int, scale: float) -> tuple[Tensor, Tensor]:
        B, N, packed = qkv.shape
        return (
            qkv.new_empty(B, N, packed // 3),
            qkv.new_empty(B, num_heads, N, dtype=torch.float32),
        )

    @torch.library.register_fake(f"uniformer_kernels::{_NAME}_backward")
    def _fake_backward(
        dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, scale: float
    ) -> Tensor:
        return qkv.new_empty(qkv.shape)


_joint_attention = Operator(
    _NAME,
    cpu=Implementation(_cpu, _cpu_declines),
    reference=Implementation(reference.joint_attention, always),
)
_joint_attention_with_score = Operator(
    _SCORE,
    cpu=Implementation(_cpu_with_score, _cpu_declines),
    reference=Implementation(reference.joint_attention_with_score, always),
)


def joint_attention(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    """Attend among all tokens of a clip: ``softmax(scale q kᵀ) v`` for every head (seeds' Eq. 7).

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
