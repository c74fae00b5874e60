"""Joint space-time attention with the score matrix written out."""

import contextlib

import torch
from torch import Tensor


def joint_attention(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    """``softmax(scale q kᵀ) v`` for every head of the packed ``[B, N, 3C]``."""
    q, k, v = heads(qkv, num_heads)
    return _joined(_scores(q, k, scale).softmax(-1) @ v)


def joint_attention_with_score(
    qkv: Tensor, num_heads: int, *, queries: int | None = 1, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Also the softmax itself, as its mean over heads and the first ``queries`` queries."""
    q, k, v = heads(qkv, num_heads)
    probabilities = wide_softmax(q, k, scale)
    score = probabilities[:, :, :queries].mean((1, 2))
    return _joined(probabilities.to(v.dtype) @ v), score


def wide_softmax(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    """``softmax(scale q kᵀ)`` in float32 (float64 for float64), under autocast too."""
    wide = torch.promote_types(q.dtype, torch.float32)
    device = q.device.type
    narrows = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if narrows else contextlib.nullcontext():
        return _scores(q.to(wide), k.to(wide), scale).softmax(-1)


def heads(qkv: Tensor, num_heads: int) -> Tensor:
    """Queries, keys and values, each ``[B, H, N, d]``."""
    B, N, packed = qkv.shape
    return qkv.reshape(B, N, 3, num_heads, packed // 3 // num_heads).permute(2, 0, 3, 1, 4)


def _scores(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    return (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)


def _joined(y: Tensor) -> Tensor:
    """``[B, H, N, d]`` to ``[B, N, C]``."""
    return y.transpose(1, 2).flatten(2)
