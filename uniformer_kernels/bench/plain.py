"""The operators as one would write them in plain PyTorch, the official ways among them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def depthwise_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """On `[B, C, T, H, W]`; whether that is channels-last is in `x`'s strides."""
    padding = tuple(k // 2 for k in weight.shape[2:])
    return F.conv3d(x, weight, bias, padding=padding, groups=x.shape[1])


def dense_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same of a kernel that `dense` has expanded."""
    return F.conv3d(x, weight, bias, padding=tuple(k // 2 for k in weight.shape[2:]))


def dense(weight: Tensor) -> Tensor:
    """A full kernel `[C, C, ...]` for a depthwise one, zero off the diagonal."""
    return torch.diag_embed(weight[:, 0].movedim(0, -1)).movedim((-2, -1), (0, 1))


def taps(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The equation of a depthwise convolution on `[B, T, H, W, C]`, tap by tap.

    For float64, where `conv3d` has no fast kernel.
    """
    return _Taps.apply(x, weight) + bias


class _Taps(torch.autograd.Function):
    """A convolution's gradients are one with the kernel flipped, and sums over the positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = torch.zeros_like(x)
        for tap, shifted in zip(weight.flatten(1).t(), _shifted(x, weight.shape[2:]), strict=True):
            y.addcmul_(tap, shifted)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dx = _Taps.forward(ctx, dy, weight.flip(2, 3, 4))
        sums = [(dy * s).sum((0, 1, 2, 3)) for s in _shifted(x, weight.shape[2:])]
        return dx, torch.stack(sums, 1).view_as(weight)


def _shifted(x: Tensor, kernel: Sequence[int]) -> Iterator[Tensor]:
    """What each tap of a kernel multiplies."""
    padded = F.pad(x, (0, 0, *(n for k in reversed(kernel) for n in (k // 2, k // 2))))
    for offset in itertools.product(*map(range, kernel)):
        yield padded[(slice(None), *map(slice, offset, map(add, offset, x.shape[1:4])))]


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
    position = torch.arange(N, device=x.device).expand(B, N)
    state = torch.cat([x, importance.unsqueeze(2).to(x), position.unsqueeze(2).to(x)], 2)
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
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), index]
