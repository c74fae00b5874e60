"""Operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def depthwise_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """On `[B, C, T, H, W]`; whether that is channels-last is in `x`'s strides."""
    padding = tuple(k // 2 for k in weight.shape[2:])
    return F.conv3d(x, weight, bias, padding=padding, groups=x.shape[1])


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)


def materialised_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With all scores in memory."""
    return attention_weights(q, k) @ v


def unpacked(qkv: Tensor, num_heads: int) -> Tensor:
    """`[B, N, 3C]` to queries, keys and values `[3, B, heads, N, d]`."""
    B, N, _ = qkv.shape
    return qkv.reshape(B, N, 3, num_heads, -1).permute(2, 0, 3, 1, 4)


def packed_attention(qkv: Tensor, num_heads: int, attend: Attend) -> Tensor:
    """`[B, N, 3C]` to `[B, N, C]`."""
    return attend(*unpacked(qkv, num_heads)).transpose(1, 2).flatten(2)


def token_shrink(
    x: Tensor, importance: Tensor, keep: int, prefix: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort all tokens, and merge those behind the first `keep`.

    Returns:
        `[prefix | kept | representative]`, the others, and in the order of both the importance and
        where the tokens stood, as a number of the tokens' dtype.
    """
    B, N, C = x.shape
    position = torch.arange(N).expand(B, N)
    state = torch.cat([x, importance.unsqueeze(2), position.unsqueeze(2)], 2)
    state = _rows(state, importance.argsort(1, descending=True))
    x, importance, position = state[:, :, :C], state[:, :, C], state[:, :, C + 1]
    weight = importance[:, keep:] / importance[:, keep:].sum(1, keepdim=True)
    representative = (x[:, keep:] * weight.unsqueeze(2)).sum(1, keepdim=True)
    return torch.cat([prefix, x[:, :keep], representative], 1), x[:, keep:], importance, position


def token_recover(
    kept: Tensor, others: Tensor, importance: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """The tokens and their importance back where they stood."""
    x = torch.cat([kept, others], 1)
    state = torch.cat([x, importance.unsqueeze(2), position.unsqueeze(2)], 2)
    state = _rows(state, position.argsort(1))
    return state[:, :, : x.shape[2]], state[:, :, x.shape[2]]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Faster than `gather`, which reads the index of a row for each of its channels."""
    return x[torch.arange(len(x)).unsqueeze(1), index]
