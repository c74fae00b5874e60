"""The global block with divided attention: over time, then over space."""

from __future__ import annotations

from torch import Tensor

from ..ops import depthwise_conv3d, feed_forward, joint_attention, linear
from .norms import layer_norm
from .parameters import Affine, LayerNorm
from .residual import add_branch


def divided_block(
    x: Tensor,
    *,
    dpe: Affine,
    t_norm: LayerNorm,
    t_qkv: Affine,
    t_proj: Affine,
    norm1: LayerNorm,
    qkv: Affine,
    proj: Affine,
    norm2: LayerNorm,
    fc1: Affine,
    fc2: Affine,
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
        t_proj, proj: ``[C, C]``.
        fc1, fc2: linear layers to the hidden channels and back.
        num_heads: heads; ``C`` is a multiple of it.
        drop_path: probability that a branch is lost; 0 when evaluating.

    Returns:
        ``[B, T, H, W, C]`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what the operators raise for a shape or dtype that does not fit.
    """
    x = depthwise_conv3d(x, *dpe.as_conv3d(), residual=True)
    B, T, H, W, C = x.shape
    u = x.flatten(2, 3).transpose(1, 2).reshape(B * H * W, T, C)
    a = joint_attention(linear(layer_norm(u, t_norm), *t_qkv), num_heads)
    u = add_branch(u, drop_path, linear, a, *t_proj)

    v = u.view(B, H * W, T, C).transpose(1, 2).reshape(B * T, H * W, C)
    a = joint_attention(linear(layer_norm(v, norm1), *qkv), num_heads)
    z = add_branch(x.reshape(v.shape), drop_path, linear, a, *proj)

    z = z.reshape(B, T * H * W, C)
    z = add_branch(z, drop_path, feed_forward, layer_norm(z, norm2), *fc1, *fc2)
    return z.view(x.shape)
