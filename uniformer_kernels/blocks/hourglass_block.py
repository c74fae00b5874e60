"""The hourglass block of the lightweight models: attention among the important tokens only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import joint_attention_with_score, token_recover_with_importance, token_shrink
from .layers import Called, Layer, depthwise_conv3d, feed_forward, layer_norm, linear, scaled
from .parameters import LayerNorm
from .residual import add


def hourglass_block(
    x: Tensor,
    score_token: Tensor,
    importance: Tensor | None,
    *,
    dpe: Layer,
    norm1: LayerNorm | Called,
    qkv: Layer,
    proj: Layer | None,
    norm2: LayerNorm | Called,
    fc1: Layer,
    fc2: Layer | None,
    num_heads: int,
    keep: float,
    trade_off: float = 0.5,
    queries: int | None = 1,
    gamma_1: Tensor | None = None,
    gamma_2: Tensor | None = None,
    drop_path: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """DPE, shrink, global relation aggregation, feed-forward, recover (TPAMI 2023, section 3.4)::

        x = x + DPE(x)
        z = [score token | the K most important of x | representative of the others]
        u = gamma_1 * Proj(Attention(QKV(LN(z))))
        z = z + DropPath(u)
        m = gamma_2 * FC2(GELU(FC1(LN(z))))
        z = z + DropPath(m)
        x = the K tokens of z, and the others + u + m of their representative

    The paper copies the representative to where the others were; the official code, and this,
    adds its residuals, which stochastic depth leaves alone. The attention the score token pays
    to the tokens that took part goes into their importance; nothing is normalised.

    Args:
        x: ``[B, T, H, W, C]``, floating.
        score_token: ``[B, 1, C]`` in ``x``'s dtype.
        importance: ``[B, T * H * W]``, float32 (float64 for float64), as the block before returned
            it; ``None`` at first, when every token takes part.
        dpe: depthwise convolution, ``[C, 1, 3, 3]`` or ``[C, 1, 3, 3, 3]``.
        norm1, norm2: LayerNorm over ``C``.
        qkv: ``[3C, C]``, rows ``[q | k | v]``, each head after head.
        proj: ``[C, C]``; without it, ``qkv`` is all of the attention, to be called, and gives the
            importance too.
        fc1, fc2: linear layers to the hidden channels and back; without ``fc2``, ``fc1`` is all of
            the feed-forward, to be called.
        num_heads: heads; ``C`` is a multiple of it.
        keep: ``K = int(N * keep)`` tokens are kept; at 1 every token takes part.
        trade_off: weight of the new importance against the old, which it starts from.
        queries: the importance is the mean over this many first rows of the attention: the score
            token's, or with ``None`` all.
        gamma_1, gamma_2: layer scales with ``C`` elements.
        drop_path: probability that a sample loses a branch, each branch on its own; 0 when
            evaluating.

    Returns:
        ``x``, ``score_token`` and ``importance`` for the next block, the first two in ``x``'s
        dtype.

    Raises:
        ValueError, TypeError: what the operators raise for a shape or dtype that does not fit.
    """
    x = depthwise_conv3d(x, dpe, residual=True)
    tokens = x.flatten(1, 3)
    N = tokens.shape[1]
    kept = N if importance is None else int(N * keep)
    if kept < N:
        z, index = token_shrink(tokens, importance, kept, prefix=score_token)
    else:
        z = torch.cat([score_token, tokens], 1)

    if proj is None:
        a, score = qkv.function(layer_norm(z, norm1))
        attend: Layer = Called(nn.Identity(), scale=gamma_1)
    else:
        packed = linear(z, qkv, norm=norm1)
        a, score = joint_attention_with_score(packed, num_heads, queries=queries)
        (attend,) = scaled(gamma_1, proj)
    network = scaled(gamma_2, fc1, fc2)
    if drop_path:
        u = linear(a, attend)
        r = add(z, u, drop_path)
        m = feed_forward(r, *network, norm=norm2)
        y = add(r, m, drop_path)
    else:
        r = linear(a, attend, residual=z)
        y = feed_forward(r, *network, norm=norm2, residual=r)

    # One split, as the gradient of every slice would be filled with zeros.
    score_token, seen, last = y.split([1, kept, y.shape[1] - 1 - kept], 1)
    if kept < N:
        delta = u[:, -1:] + m[:, -1:] if drop_path else last - z[:, -1:]
        delta = delta.to(x.dtype)
        tokens, importance = token_recover_with_importance(
            tokens, index, seen, delta, importance, score, trade_off=trade_off
        )
    else:
        tokens, score = seen, score[:, 1:]
        importance = score if importance is None else importance.lerp(score, trade_off)
    return tokens.view(x.shape), score_token, importance


def pool_importance(importance: Tensor, grid: Sequence[int]) -> Tensor:
    """The importance on a grid with half the height and width; a sample's sum stays.

    Args:
        importance: ``[B, T * H * W]``, floating.
        grid: ``T, H, W``, of which ``H`` and ``W`` are at least 2.

    Returns:
        ``[B, T * (H // 2) * (W // 2)]`` in ``importance``'s dtype.

    Raises:
        RuntimeError: what ``avg_pool2d`` raises for a grid that has nothing left.
    """
    pooled = F.avg_pool2d(importance.view(importance.shape[0], *grid), 2).flatten(1)
    total = pooled.sum(1, keepdim=True)
    scale = importance.sum(1, keepdim=True) / torch.where(total == 0, 1.0, total)
    return pooled * scale
