"""Attention inside windows of a grid, which the kernels read where they lie."""

from __future__ import annotations

from torch import Tensor

from .attention import Tunables, Windows, attend, attend_backward
from .launch import cdiv
from .partials import sum_partials

_WINDOWED = Tunables.of("window_attention")


def window_attention(
    qkv: Tensor, bias: Tensor, num_heads: int, columns: int, window_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    windows, padded = _windows(qkv, columns, window_size)
    return attend(_WINDOWED, windows, qkv, bias if padded else None, num_heads, scale)


def window_attention_backward(
    dout: Tensor,
    qkv: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    columns: int,
    window_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    windows, padded = _windows(qkv, columns, window_size)
    dqkv, partials = attend_backward(
        _WINDOWED, windows, dout, qkv, bias if padded else None, out, lse, num_heads, scale
    )
    dbias = bias.new_zeros(bias.shape)
    if partials is not None:
        sum_partials(partials, [dbias[qkv.shape[2] // 3 :]])
    return dqkv, dbias


def _windows(qkv: Tensor, columns: int, size: int) -> tuple[Windows, bool]:
    """The windows, and whether any reaches over the grid."""
    rows = qkv.shape[1] // columns
    count = cdiv(rows, size) * cdiv(columns, size)
    tokens = min(size, rows) * min(size, columns)
    return Windows(count, tokens, columns, size), rows % size > 0 or columns % size > 0
