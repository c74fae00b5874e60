"""The global block with attention inside windows, of the dense models' stage 3."""

from __future__ import annotations

from torch import Tensor

from ..ops import depthwise_conv3d, feed_forward, linear, window_attention
from .norms import layer_norm
from .parameters import Affine, LayerNorm
from .residual import add_branch


def window_block(
    x: Tensor,
    *,
    dpe: Affine,
    norm1: LayerNorm,
    qkv: Affine,
    proj: Affine,
    norm2: LayerNorm,
    fc1: Affine,
    fc2: Affine,
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
        proj: ``[C, C]``.
        fc1, fc2: linear layers to the hidden channels and back.
        num_heads: heads; ``C`` is a multiple of it.
        window_size: height and width of a window; may exceed the grid's.
        drop_path: probability that a sample loses a branch, each branch on its own; 0 when
            evaluating.

    Returns:
        ``[B, T, H, W, C]`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what the operators raise for a shape or dtype that does not fit.
    """
    x = depthwise_conv3d(x, *dpe.as_conv3d(), residual=True)
    y = linear(layer_norm(x, norm1), *qkv)
    y = window_attention(y, qkv.bias, num_heads, window_size)
    x = add_branch(x, drop_path, linear, y, *proj)
    return add_branch(x, drop_path, feed_forward, layer_norm(x, norm2), *fc1, *fc2)
