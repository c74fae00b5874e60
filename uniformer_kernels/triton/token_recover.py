"""Putting tokens back among the others, and the running mean of their importance."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, launch
from .partials import sum_partials
from .token_shrink import _SPACE, _options, _slot
from .tuning import Tunable

RECOVER = Tunable("token_recover", _SPACE)
RECOVER_BACKWARD = Tunable("token_recover_backward", _SPACE)


@triton.jit
def _scored(slot, back, N, K, prefixed):
    """Where each token's score stands, and whether it has one: a kept one has, and a single other
    one, which is its own representative."""
    return prefixed + tl.where(back, slot, K), tl.where(back, 1, N - K) == 1


@triton.jit
def _recover_kernel(
    y,
    x,
    index,
    kept,
    delta,
    updated,
    importance,
    score,
    x_sample,
    x_row,
    kept_sample,
    kept_row,
    delta_sample,
    importance_sample,
    score_sample,
    N,
    K,
    prefixed,
    trade_off,
    C: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Some tokens' new values, and their importance."""
    blocks = tl.cdiv(N, BLOCK_N)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    slot, back = _slot(index + sample * K, n, K, STEPS)
    x += sample * x_sample
    kept += sample * kept_sample
    delta += sample * delta_sample
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (n < N)[:, None] & (c < C)[None, :]
        at = (n.to(tl.int64) * x_row)[:, None] + c[None, :]
        value = tl.load(x + at, mask=inside & (back == 0)[:, None], other=0.0).to(tl.float32)
        value += tl.load(delta + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        at = (slot.to(tl.int64) * kept_row)[:, None] + c[None, :]
        new = tl.load(kept + at, mask=inside & back[:, None], other=0.0).to(tl.float32)
        value = tl.where(back[:, None], new, value).to(y.dtype.element_ty)
        tl.store(y + ((sample * N + n) * C)[:, None] + c[None, :], value, mask=inside)
    if importance is not None:
        at, scored = _scored(slot, back, N, K, prefixed)
        scored = scored & (n < N)
        old = tl.load(importance + sample * importance_sample + n, mask=n < N, other=0.0)
        new = tl.load(score + sample * score_sample + at, mask=scored, other=0.0)
        # As torch.lerp, from the end that is nearer.
        far = new - (new - old) * (1.0 - trade_off)
        mixed = tl.where(tl.abs(trade_off) < 0.5, old + trade_off * (new - old), far)
        tl.store(updated + sample * N + n, tl.where(scored, mixed, old), mask=n < N)


@triton.jit
def _recover_backward_kernel(
    dy,
    index,
    dx,
    dkept,
    partials,
    dupdated,
    dimportance,
    dscore,
    dy_sample,
    dy_row,
    B,
    N,
    K,
    prefixed,
    trade_off,
    rest,
    C: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Some tokens' gradients, the kept ones' where they came from, and a part of ``delta``'s; those
    of their importance and, ``rest`` being 1 less the trade-off, of their score."""
    blocks = tl.cdiv(N, BLOCK_N)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    slot, back = _slot(index + sample * K, n, K, STEPS)
    dy += sample * dy_sample
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (n < N)[:, None] & (c < C)[None, :]
        up = tl.load(dy + (n.to(tl.int64) * dy_row)[:, None] + c[None, :], mask=inside, other=0.0)
        at = ((sample * K + slot) * C)[:, None] + c[None, :]
        tl.store(dkept + at, up, mask=inside & back[:, None])
        up = tl.where(back[:, None], 0.0, up.to(tl.float32))
        at = ((sample * N + n) * C)[:, None] + c[None, :]
        tl.store(dx + at, up.to(dx.dtype.element_ty), mask=inside)
        tl.store(partials + (block * B + sample) * C + c, tl.sum(up, 0), mask=c < C)
    if dupdated is not None:
        at, scored = _scored(slot, back, N, K, prefixed)
        up = tl.load(dupdated + sample * N + n, mask=n < N, other=0.0)
        tl.store(dimportance + sample * N + n, tl.where(scored, up * rest, up), mask=n < N)
        dscore += sample * (prefixed + K + 1)
        tl.store(dscore + at, up * trade_off, mask=scored & (n < N))
        if block == 0:  # what nobody's score is
            for p in range(0, prefixed):
                tl.store(dscore + p, 0.0)
            if N - K != 1:
                tl.store(dscore + prefixed + K, 0.0)


def token_recover(x: Tensor, index: Tensor, kept: Tensor, delta: Tensor) -> Tensor:
    y = x.new_empty(x.shape)
    _recover(y, x, index, kept, delta)
    return y


def token_recover_with_importance(
    x: Tensor,
    index: Tensor,
    kept: Tensor,
    delta: Tensor,
    importance: Tensor,
    score: Tensor,
    trade_off: float,
) -> tuple[Tensor, Tensor]:
    y, updated = x.new_empty(x.shape), importance.new_empty(importance.shape)
    _recover(y, x, index, kept, delta, updated, importance, score, trade_off)
    return y, updated


def _recover(
    y: Tensor,
    x: Tensor,
    index: Tensor,
    kept: Tensor,
    delta: Tensor,
    updated: Tensor | None = None,
    importance: Tensor | None = None,
    score: Tensor | None = None,
    trade_off: float = 0.0,
) -> None:
    (B, N, _), K = x.shape, index.shape[1]
    options = _options(RECOVER, x)
    launch(
        _recover_kernel,
        (B * cdiv(N, options["BLOCK_N"]),),
        y,
        x,
        index,
        kept,
        delta,
        updated,
        importance,
        score,
        x.stride(0),
        x.stride(1),
        kept.stride(0),
        kept.stride(1),
        delta.stride(0),
        0 if importance is None else importance.stride(0),
        0 if score is None else score.stride(0),
        N,
        K,
        0 if score is None else score.shape[1] - K - 1,
        trade_off,
        STEPS=K.bit_length(),
        **options,
    )


def token_recover_backward(dy: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _recover_backward(dy, index)


def token_recover_with_importance_backward(
    dy: Tensor, dupdated: Tensor, index: Tensor, prefixed: int, trade_off: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, K = index.shape
    # Without a token nothing is launched, and no score counted.
    new = dupdated.new_empty if dupdated.shape[1] > 0 else dupdated.new_zeros
    gradients = new(dupdated.shape), new(B, prefixed + K + 1)
    tokens = _recover_backward(dy, index, dupdated, *gradients, prefixed, trade_off)
    return *tokens, *gradients


def _recover_backward(
    dy: Tensor,
    index: Tensor,
    dupdated: Tensor | None = None,
    dimportance: Tensor | None = None,
    dscore: Tensor | None = None,
    prefixed: int = 0,
    trade_off: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    B, N, C = dy.shape
    K = index.shape[1]
    options = _options(RECOVER_BACKWARD, dy)
    blocks = cdiv(N, options["BLOCK_N"])
    dx, dkept, ddelta = dy.new_empty(B, N, C), dy.new_empty(B, K, C), dy.new_empty(B, 1, C)
    partials = dy.new_empty(blocks, B * C, dtype=torch.float32)
    launch(
        _recover_backward_kernel,
        (B * blocks,),
        dy,
        index,
        dx,
        dkept,
        partials,
        dupdated,
        dimportance,
        dscore,
        dy.stride(0),
        dy.stride(1),
        B,
        N,
        K,
        prefixed,
        trade_off,
        1.0 - trade_off,
        STEPS=K.bit_length(),
        **options,
    )
    sum_partials(partials, [ddelta])
    return dx, dkept, ddelta
