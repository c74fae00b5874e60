"""The global block with attention inside windows, of the dense models' stage 3."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..ops import window_attention
from .layers import Called, Layer, depthwise_conv3d, feed_forward, layer_norm, linear
from .parameters import Affine, LayerNorm
from .residual import add_branch


def window_block(
    x: Tensor,
    *,
    dpe: Layer,
    norm1: LayerNorm | Called,
    qkv: Layer,
    proj: Layer | None,
    norm2: LayerNorm | Called,
    fc1: Layer,
    fc2: Layer | None,
    num_heads: int,
    window_size: int,
    drop_path: float = 0.0,
) -> Tensor:
    """DPE, relations inside windows, feed-forward (TPAMI 2023, section 3.4)::

        x = x + DPE(x)
        x = x + DropPath(Proj(WindowAttention(QKV(LN(x)))))
        x = x + DropPath(FC2(GELU(FC1(LN(x)))))

    The grid is filled up to whole windows at the right and at the bottom, with zeros behind the
    norm: their queries, keys and values are the bias of ``qkv``.

    Args:
        x: ``[B, T, H, W, C]``, floating; a window never reaches over two frames.
        dpe: depthwise convolution, ``[C, 1, 3, 3]`` or ``[C, 1, 3, 3, 3]``.
        norm1, norm2: LayerNorm over ``C``.
        qkv: ``[3C, C]``, rows ``[q | k | v]``, each head after head.
        proj: ``[C, C]``; without it, ``qkv`` is all of the attention, to be called.
        fc1, fc2: linear layers to the hidden channels and back; without ``fc2``, ``fc1`` is all of
            the feed-forward, to be called.
        num_heads: heads; ``C`` is a multiple of it.
        window_size: height and width of a window; may exceed the grid's.
        drop_path: probability that a sample loses a branch, each branch on its own; 0 when
            evaluating.

    Returns:
        ``[B, T, H, W, C]`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what the operators raise for a shape or dtype that does not fit.
    """
    x = depthwise_conv3d(x, dpe, residual=True)
    if proj is None:
        x = add_branch(x, drop_path, _in_windows, layer_norm(x, norm1), qkv, window_size)
    else:
        y = _window_attention(x, norm1, qkv, num_heads, window_size)
        x = add_branch(x, drop_path, linear, y, proj)
    return add_branch(x, drop_path, feed_forward, x, fc1, fc2, norm=norm2)


def _window_attention(
    x: Tensor, norm: LayerNorm | Called, qkv: Layer, num_heads: int, window_size: int
) -> Tensor:
    if isinstance(qkv, Affine):
        return window_attention(linear(x, qkv, norm=norm), qkv.bias, num_heads, window_size)
    H, W = x.shape[2:4]
    # Nobody knows what it gives for a zero.
    y = qkv(_filled_up(layer_norm(x, norm), window_size))
    return window_attention(y, None, num_heads, window_size)[:, :, :H, :W]


def _in_windows(
    x: Tensor, attention: Called, window_size: int, *, residual: Tensor | None = None
) -> Tensor:
    """An attention that is called with the windows, ``[windows, window_size**2, C]``."""
    H, W, C = x.shape[2:]
    x = _filled_up(x, window_size)
    size = x.shape[2] // window_size, window_size, x.shape[3] // window_size, window_size
    windows = x.unflatten(3, size[2:]).unflatten(2, size[:2]).transpose(3, 4)
    y = attention(windows.reshape(-1, window_size**2, C)).view(windows.shape)
    y = y.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :H, :W]
    return y if residual is None else residual + y


def _filled_up(x: Tensor, window_size: int) -> Tensor:
    """Zeros at the right and at the bottom make whole windows."""
    H, W = x.shape[2:4]
    return F.pad(x, (0, 0, 0, -W % window_size, 0, -H % window_size))
