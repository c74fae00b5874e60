"""Joint spatiotemporal attention over packed queries, keys and values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _extension, checks, reference
from ..backends import Implementation, Operator, always

_NAME = "joint_attention"


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


def _cpu(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    B, N, packed = qkv.shape
    d = packed // 3 // num_heads
    if _extension.missing is None and qkv.dtype != torch.float64:
        qkv = qkv if qkv.stride(2) == 1 else qkv.contiguous()
        return _JointAttention.apply(qkv, num_heads, d**-0.5 if scale is None else scale)[0]
    q, k, v = qkv.reshape(B, N, 3, num_heads, d).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return y.transpose(1, 2).reshape(B, N, packed // 3)


def _cpu_declines(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> str | None:
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
    checks.shape(_NAME, "qkv", qkv, ["B", "N", "3C"])
    checks.floating(_NAME, "qkv", qkv)
    if num_heads < 1 or qkv.shape[2] % (3 * num_heads):
        raise ValueError(
            f"{_NAME}: num_heads: expected a divisor of C for qkv [B, N, 3C], "
            f"got {num_heads} with qkv {list(qkv.shape)}"
        )
    (qkv,) = checks.autocast(qkv)
    return _joint_attention(qkv, num_heads, scale=scale)
