"""The blocks of UniFormerV2: a vision transformer's, and what makes them see a video.

Tokens are ``[B, T, 1 + HW, C]``: in every frame a class token, then the patches row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..backends import needs_grad
from .layers import Called, Layer, attention, depthwise_conv3d, feed_forward, layer_norm, linear
from .norms import norm_then
from .parameters import Affine, BatchNorm, LayerNorm
from .residual import add, add_branch


def frame_tokens(
    x: Tensor,
    *,
    proj: Layer,
    stride: Sequence[int],
    padding: Sequence[int],
    class_embedding: Tensor,
    positional_embedding: Tensor,
    norm: LayerNorm | Called,
) -> Tensor:
    """``LayerNorm([class_embedding | conv(x)] + positional_embedding)`` for every frame.

    Args:
        x: ``[B, T, H, W, C]``, floating, in any memory layout.
        proj: convolution, ``[C', C, kt, kh, kw]``.
        stride, padding: of the convolution.
        class_embedding: ``[C']``.
        positional_embedding: ``[1 + H'W', C']``.
        norm: LayerNorm over ``C'``.

    Returns:
        ``[B, T', 1 + H'W', C']`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what ``patch_embed`` raises for a shape or dtype that does not fit.
    """
    if isinstance(proj, Called):
        patches = proj(x)
    else:
        patches = ops.patch_embed(x, *proj[:2], stride=stride, padding=padding)
    patches = patches.flatten(2, 3)
    classes = class_embedding.expand(*patches.shape[:2], 1, -1)
    return layer_norm(torch.cat([classes, patches], 2) + positional_embedding, norm)


class TemporalMHRA(NamedTuple):
    """The layers of a local temporal relation aggregator, ``PW2(DW(PW1(BN(x))))``.

    ``pw1`` is ``[C_r, C, 1, 1, 1]``, ``dw`` ``[C_r, 1, 3, 1, 1]``, ``pw2`` ``[C, C_r, 1, 1, 1]``;
    ``norm`` is ``None`` where it is a part of ``pw1``.
    """

    norm: BatchNorm | Called | None
    pw1: Layer
    dw: Layer
    pw2: Layer


def _on_patches(x: Tensor, grid: tuple[int, int], function: Callable[[Tensor], Tensor]) -> Tensor:
    """Tokens whose patches, as ``[B, T, H, W, C]``, went through ``function``."""
    patches = x[:, :, 1:].unflatten(2, grid)
    return torch.cat([x[:, :, :1], function(patches).flatten(2, 3)], 2)


def temporal_mhra(
    x: Tensor, layers: TemporalMHRA, *, grid: tuple[int, int], drop_path: float = 0.0
) -> Tensor:
    """``x + DropPath(PW2(DW(PW1(BN(x)))))`` on the patches; class tokens stay (UniFormerV2, LMHRA).

    Args:
        x: ``[B, T, 1 + HW, C]``, floating.
        layers: the norm and the convolutions; the depthwise one reaches along time only.
        grid: ``(H, W)``.
        drop_path: probability that a sample loses the branch; 0 when evaluating.

    Returns:
        ``[B, T, 1 + HW, C]`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what the operators raise for a shape or dtype that does not fit;
            one value per channel with batch statistics.
    """

    if any(isinstance(layer, Called) for layer in layers):
        return _on_patches(x, grid, partial(_aggregate, layers=layers, drop_path=drop_path))
    # The convolution never leaves a token's column, so the class tokens may go along as another
    # one: nothing is cut out or put together. In the end they are put back or, as the gradient of a
    # slice is a map full of zeros, nothing is added to them.
    _, pw1 = norm_then(x[:, :, 1:], layers.norm, layers.pw1)
    y = depthwise_conv3d(linear(x, pw1).unsqueeze(2), layers.dw).squeeze(2)
    if needs_grad(y):
        y = linear(y, layers.pw2)
        y[:, :, 0].zero_()
        return add(x, y, drop_path)
    y = add_branch(x, drop_path, linear, y, layers.pw2)
    y[:, :, 0] = x[:, :, 0]
    return y


def _aggregate(patches: Tensor, layers: TemporalMHRA, drop_path: float) -> Tensor:
    y, pw1 = norm_then(patches, layers.norm, layers.pw1)
    y = depthwise_conv3d(linear(y, pw1), layers.dw)
    return add_branch(patches, drop_path, linear, y, layers.pw2)


def local_uniblock(
    x: Tensor,
    *,
    grid: tuple[int, int],
    lmhra1: TemporalMHRA | None,
    ln_1: LayerNorm | Called,
    in_proj: Layer,
    out_proj: Layer | None,
    lmhra2: TemporalMHRA | None,
    ln_2: LayerNorm | Called,
    c_fc: Layer,
    c_proj: Layer | None,
    num_heads: int,
    drop_path: float = 0.0,
) -> Tensor:
    """A layer of the image transformer with temporal aggregators (UniFormerV2, local UniBlock)::

        x = x + DropPath(LMHRA_1(x))                                # patches only
        x = x + DropPath(OutProj(Attention(InProj(LN(x)))))         # within a frame
        x = x + DropPath(LMHRA_2(x))                                # patches only
        x = x + DropPath(CProj(QuickGELU(CFC(LN(x)))))

    DropPath draws as the official model does, whose transformer runs with the tokens first: once
    per sample for the aggregators, once per token of a frame, for all frames and samples, for the
    other two branches.

    Args:
        x: ``[B, T, 1 + HW, C]``, floating.
        grid: ``(H, W)``.
        lmhra1, lmhra2: the temporal aggregators; ``None`` for none.
        ln_1, ln_2: LayerNorm over ``C``.
        in_proj: ``[3C, C]``, rows ``[q | k | v]``, each head after head.
        out_proj: ``[C, C]``; without it, ``in_proj`` is all of the attention, to be called with
            frames, ``[BT, 1 + HW, C]``.
        c_fc, c_proj: linear layers to the hidden channels and back; without ``c_proj``, ``c_fc`` is
            all of the feed-forward, to be called.
        num_heads: heads; ``C`` is a multiple of it.
        drop_path: probability that a branch is lost; 0 when evaluating.

    Returns:
        ``[B, T, 1 + HW, C]`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what the operators raise for a shape or dtype that does not fit.
    """
    if lmhra1 is not None:
        x = temporal_mhra(x, lmhra1, grid=grid, drop_path=drop_path)

    def attend(x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        frames, r = (t if t is None else t.flatten(0, 1) for t in (x, residual))
        options = {"norm": ln_1, "num_heads": num_heads, "residual": r}
        return attention(frames, in_proj, out_proj, **options).view(x.shape)

    x = add_branch(x, drop_path, attend, x, axis=2)
    if lmhra2 is not None:
        x = temporal_mhra(x, lmhra2, grid=grid, drop_path=drop_path)
    options = {"norm": ln_2, "activation": "quick_gelu", "axis": 2}
    return add_branch(x, drop_path, feed_forward, x, c_fc, c_proj, **options)


def video_memory(x: Tensor, *, grid: tuple[int, int], dpe: Layer) -> Tensor:
    """What a global UniBlock attends to: all tokens of a clip, DPE added to the patches.

    Args:
        x: ``[B, T, 1 + HW, C]``, floating.
        grid: ``(H, W)``.
        dpe: depthwise convolution, ``[C, 1, 3, 3, 3]``.

    Returns:
        ``[B, T(1 + HW), C]`` in ``x``'s dtype.

    Raises:
        ValueError, TypeError: what ``depthwise_conv3d`` raises.
    """
    y = _on_patches(x, grid, lambda patches: depthwise_conv3d(patches, dpe, residual=True))
    return y.flatten(1, 2)


def global_uniblock(
    query: Tensor,
    memory: Tensor,
    *,
    ln_1: LayerNorm | Called,
    ln_3: LayerNorm | Called,
    in_proj: Affine | Called,
    out_proj: Affine | None,
    ln_2: LayerNorm | Called,
    c_fc: Layer,
    c_proj: Layer | None,
    num_heads: int,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Tensor:
    """Update a video's token from all its frames (UniFormerV2, global UniBlock)::

        q = q + DropPath(OutProj(CrossAttention(LN_1(q), LN_3(memory))))
        q = q + DropPath(CProj(Dropout(QuickGELU(CFC(LN_2(q))))))

    DropPath draws once per branch for the whole batch, as the official model does.

    Args:
        query: ``[B, 1, C]``, floating.
        memory: ``[B, N, C]``, as ``video_memory`` makes it.
        ln_1, ln_2, ln_3: LayerNorm over ``C``.
        in_proj: ``[3C, C]``, rows ``[q | k | v]``, each head after head.
        out_proj: ``[C, C]``; without it, ``in_proj`` is all of the attention, to be called with the
            normalised query and memory.
        c_fc, c_proj: linear layers to the hidden channels and back; without ``c_proj``, ``c_fc`` is
            all of the feed-forward, to be called.
        num_heads: heads; ``C`` is a multiple of it.
        dropout: probability that a hidden channel is lost; 0 when evaluating.
        drop_path: probability that a branch is lost; 0 when evaluating.

    Returns:
        ``[B, 1, C]`` in ``query``'s dtype.

    Raises:
        ValueError, TypeError: what the operators raise for a shape or dtype that does not fit.
    """
    q = layer_norm(query, ln_1)
    if out_proj is None:
        query = add(query, in_proj.function(q, layer_norm(memory, ln_3)), drop_path, axis=None)
    else:
        a = _query_attention(q, memory, ln_3, in_proj, num_heads)
        query = add_branch(query, drop_path, linear, a, out_proj, axis=None)
    if c_proj is None:
        return add_branch(query, drop_path, c_fc, layer_norm(query, ln_2), axis=None)
    h = linear(query, c_fc, norm=ln_2, activation="quick_gelu")
    h = F.dropout(h, dropout, training=dropout > 0)
    return add_branch(query, drop_path, linear, h, c_proj, axis=None)


def _query_attention(
    query: Tensor, memory: Tensor, norm: LayerNorm | Called, in_proj: Affine, num_heads: int
) -> Tensor:
    """The memory's norm is a part of the operator, unless it is called."""
    if isinstance(norm, LayerNorm):
        affine = norm.weight, norm.bias
        return ops.query_attention(query, memory, *affine, *in_proj[:2], num_heads, eps=norm.eps)
    memory = norm(memory)
    q, k, v = (
        F.linear(x, weight, bias).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for x, weight, bias in zip(
            (query, memory, memory), in_proj.weight.chunk(3), in_proj.bias.chunk(3), strict=True
        )
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
