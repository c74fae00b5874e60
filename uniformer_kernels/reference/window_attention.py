"""Attention inside windows, on copies of the windows of the padded grid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .attention import joint_attention


def window_attention(
    qkv: Tensor,
    bias: Tensor | None,
    num_heads: int,
    window_size: int,
    *,
    scale: float | None = None,
) -> Tensor:
    """``joint_attention`` of every window of ``[B, T, H, W, 3C]``, filled up with ``bias``."""
    y = joint_attention(windows(qkv, bias, window_size), num_heads, scale=scale)
    return from_windows(y, qkv.shape[:4], window_size)


def windows(x: Tensor, fill: Tensor | None, size: int) -> Tensor:
    """Every window of ``[B, T, H, W, C]`` as ``[size * size, C]``, filled up with ``[C]``."""
    B, T, H, W, C = x.shape
    down, across = -(-H // size), -(-W // size)
    fill = x.new_zeros(C) if fill is None else fill
    x = torch.cat([x, fill.expand(B, T, H, across * size - W, C)], 3)
    x = torch.cat([x, fill.expand(B, T, down * size - H, across * size, C)], 2)
    x = x.reshape(B * T, down, size, across, size, C).transpose(2, 3)
    return x.reshape(B * T * down * across, size * size, C)


def from_windows(y: Tensor, grid: Sequence[int], size: int) -> Tensor:
    """The grid ``[B, T, H, W, C]`` the windows were taken from, without what filled them up."""
    B, T, H, W = grid
    down, across = -(-H // size), -(-W // size)
    y = y.reshape(B * T, down, across, size, size, y.shape[-1]).transpose(2, 3)
    return y.reshape(B, T, down * size, across * size, y.shape[-1])[:, :, :H, :W].contiguous()
