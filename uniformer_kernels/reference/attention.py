"""Joint space-time attention with the score matrix written out."""

import torch
from torch import Tensor


def joint_attention(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    """``softmax(scale q kᵀ) v`` for every head of the packed ``[B, N, 3C]``."""
    q, k, v = _heads(qkv, num_heads)
    return _joined(_scores(q, k, scale).softmax(-1) @ v)


def joint_attention_with_score(
    qkv: Tensor, num_heads: int, *, queries: int | None = 1, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Also the mean over heads and the first ``queries`` rows of the softmax, ``[B, N]``."""
    q, k, v = _heads(qkv, num_heads)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    rows = _scores(q[:, :, :queries].to(wide), k.to(wide), scale).softmax(-1)
    return _joined(_scores(q, k, scale).softmax(-1) @ v), rows.mean((1, 2))


def _heads(qkv: Tensor, num_heads: int) -> Tensor:
    """Queries, keys and values, each ``[B, H, N, d]``."""
    return qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)


def _scores(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    return (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)


def _joined(heads: Tensor) -> Tensor:
    """``[B, H, N, d]`` to ``[B, N, C]``."""
    return heads.transpose(1, 2).flatten(2)
