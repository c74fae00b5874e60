"""Joint space-time attention with the score matrix written out."""

from torch import Tensor


def joint_attention(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    """``softmax(scale q kᵀ) v`` for every head of the packed ``[B, N, 3C]``."""
    B, N, packed = qkv.shape
    d = packed // 3 // num_heads
    q, k, v = qkv.reshape(B, N, 3, num_heads, d).permute(2, 0, 3, 1, 4)
    scores = (q @ k.mT) * (d**-0.5 if scale is None else scale)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, num_heads * d)
