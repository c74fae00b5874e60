"""The global UniFormer block of stages 3 and 4: joint attention over space and time."""

from __future__ import annotations

from torch import Tensor

from .layers import Called, Layer, attention, depthwise_conv3d, feed_forward, scaled
from .parameters import LayerNorm
from .residual import add_branch


def global_block(
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
    gamma_1: Tensor | None = None,
    gamma_2: Tensor | None = None,
    drop_path: float = 0.0,
) -> Tensor:
    """DPE, global relation aggregation, feed-forward (UniFormer, Eq. 1-3 and 7-9)::

        x = x + DPE(x)
        x = x + DropPath(gamma_1 * Proj(Attention(QKV(LN(x)))))
        x = x + DropPath(gamma_2 * FC2(GELU(FC1(LN(x)))))

    Every token of a clip attends to all ``N = T * H * W`` of them.

    Args:
        x: ``[B, T, H, W, C]``, floating.
        dpe: depthwise convolution, ``[C, 1, 3, 3]`` or ``[C, 1, 3, 3, 3]``.
        norm1, norm2: LayerNorm over ``C``.
        qkv: ``[3C, C]``, rows ``[q | k | v]``, each head after head.
        proj: ``[C, C]``; without it, ``qkv`` is all of the attention, to be called.
        fc1, fc2: linear layers to the hidden channels and back; without ``fc2``, ``fc1`` is all of
            the feed-forward, to be called.
        num_heads: heads; ``C`` is a multiple of it.
        gamma_1, gamma_2: layer scales with ``C`` elements.
        drop_path: probability that a sample loses a branch, each branch on its own; 0 when
            evaluating.

    Returns:
        ``[B, T, H, W, C]`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what the operators raise for a shape or dtype that does not fit.
    """
    x = depthwise_conv3d(x, dpe, residual=True)
    z = x.flatten(1, 3)
    layers, options = scaled(gamma_1, qkv, proj), {"norm": norm1, "num_heads": num_heads}
    z = add_branch(z, drop_path, attention, z, *layers, **options)
    z = add_branch(z, drop_path, feed_forward, z, *scaled(gamma_2, fc1, fc2), norm=norm2)
    return z.view(x.shape)
