"""The global block with divided attention: over time, then over space."""

from __future__ import annotations

from torch import Tensor

from .layers import Called, Layer, attention, depthwise_conv3d, feed_forward
from .parameters import LayerNorm
from .residual import add_branch


def divided_block(
    x: Tensor,
    *,
    dpe: Layer,
    t_norm: LayerNorm | Called,
    t_qkv: Layer,
    t_proj: Layer | None,
    norm1: LayerNorm | Called,
    qkv: Layer,
    proj: Layer | None,
    norm2: LayerNorm | Called,
    fc1: Layer,
    fc2: Layer | None,
    num_heads: int,
    drop_path: float = 0.0,
) -> Tensor:
    """DPE, attention along time, attention within a frame, feed-forward (the paper's ablation)::

        x = x + DPE(x)
        u = x + DropPath(TProj(Attention_T(TQKV(LN(x)))))
        x = x + DropPath(Proj(Attention_HW(QKV(LN(u)))))
        x = x + DropPath(FC2(GELU(FC1(LN(x)))))

    The temporal branch reaches ``x`` only through the spatial attention's input, as in the
    official model. DropPath draws once per sample and position for the temporal branch, per sample
    and frame for the spatial one, per sample for the feed-forward.

    Args:
        x: ``[B, T, H, W, C]``, floating.
        dpe: depthwise convolution, ``[C, 1, 3, 3, 3]``.
        t_norm, norm1, norm2: LayerNorm over ``C``.
        t_qkv, qkv: ``[3C, C]``, rows ``[q | k | v]``, each head after head.
        t_proj, proj: ``[C, C]``; without one, ``t_qkv`` or ``qkv`` is all of that attention, to be
            called.
        fc1, fc2: linear layers to the hidden channels and back; without ``fc2``, ``fc1`` is all of
            the feed-forward, to be called.
        num_heads: heads; ``C`` is a multiple of it.
        drop_path: probability that a branch is lost; 0 when evaluating.

    Returns:
        ``[B, T, H, W, C]`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what the operators raise for a shape or dtype that does not fit.
    """
    x = depthwise_conv3d(x, dpe, residual=True)
    B, T, H, W, C = x.shape
    u = x.flatten(2, 3).transpose(1, 2).reshape(B * H * W, T, C)
    options = {"norm": t_norm, "num_heads": num_heads}
    u = add_branch(u, drop_path, attention, u, t_qkv, t_proj, **options)

    v = u.view(B, H * W, T, C).transpose(1, 2).reshape(B * T, H * W, C)
    z, options = x.reshape(v.shape), {"norm": norm1, "num_heads": num_heads}
    z = add_branch(z, drop_path, attention, v, qkv, proj, **options)

    z = z.reshape(B, T * H * W, C)
    z = add_branch(z, drop_path, feed_forward, z, fc1, fc2, norm=norm2)
    return z.view(x.shape)
