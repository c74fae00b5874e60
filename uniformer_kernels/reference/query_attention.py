"""Attention of one query over normalised tokens, keys and values written out."""

import torch.nn.functional as F
from torch import Tensor


def query_attention(
    query: Tensor,
    memory: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    num_heads: int,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """``softmax(d^-0.5 q kᵀ) v`` for every head, ``k`` and ``v`` from ``layer_norm(memory)``."""
    y = F.layer_norm(memory, memory.shape[-1:], norm_weight, norm_bias, eps)
    projections = zip((query, y, y), in_proj_weight.chunk(3), in_proj_bias.chunk(3), strict=True)
    q, k, v = (
        F.linear(x, weight, bias).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for x, weight, bias in projections
    )
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    return (scores.softmax(-1) @ v).flatten(1).unsqueeze(1)  # one query: heads lie in a row
