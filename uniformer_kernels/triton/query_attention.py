"""Pooling of normalised tokens by attention, a program taking one block of a sample's tokens.

Few rows attend, 12 or 16, so a block's part of the result is small beside the tokens themselves,
and programs need not go on to further blocks. Products are of float32 numbers also where tokens are
narrow, each in three of bfloat16: float16 lacks the range, and TF32 would be cut off, not rounded.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .launch import cdiv, launch, power_of_2, precision
from .partials import sum_partials
from .tuning import Tunable

_SPACE = [
    {"BLOCK_N": tokens, "BLOCK_C": channels, "num_warps": warps}
    for tokens, channels in ((32, 32), (64, 32), (128, 32), (16, 64), (32, 64), (64, 64))
    for warps in (4, 8)
]
FORWARD = Tunable("normalised_pooling", _SPACE)
BACKWARD = Tunable("normalised_pooling_backward", _SPACE)

_BLOCK_S, _BLOCK_E = 32, 64

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _pool_kernel(
    rows,
    tokens,
    partials,
    peaks,
    sums,
    mean,
    rstd,
    token_sample,
    token_row,
    B,
    N,
    eps,
    R: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block's tokens: their statistics, and what they add to the sums of every row."""
    blocks = tl.cdiv(N, BLOCK_N)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    r, in_rows = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_R) < R
    rows += sample * R * C
    token = tokens + (sample * token_sample + n.to(tl.int64) * token_row)[:, None]

    # Numbers less the mean of a part of the channels, which is at most sqrt(C / BLOCK_C) standard
    # deviations from that of all: nothing cancels, and one pass finds statistics and scores.
    c = tl.arange(0, BLOCK_C)
    inside = (n < N)[:, None] & (c < C)[None, :]
    x = tl.load(token + c[None, :], mask=inside, other=0.0).to(tl.float32)
    shift = tl.sum(x, 1) / min(C, BLOCK_C)
    total = tl.zeros([BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_N], tl.float32)
    scores = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    weight = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (n < N)[:, None] & (c < C)[None, :]
        x = tl.load(token + c[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - shift[:, None], 0.0)
        total += tl.sum(x, 1)
        squares += tl.sum(x * x, 1)
        at = r[None, :] * C + c[:, None]
        row = tl.load(rows + at, mask=in_rows[None, :] & (c < C)[:, None], other=0.0)
        weight += tl.sum(row, 0)
        scores = tl.dot(x, row, scores, input_precision=PRECISION)
    offset = total / C
    centre = shift + offset
    inverse = 1 / tl.sqrt(tl.maximum(squares / C - offset * offset, 0.0) + eps)
    tl.store(mean + sample * N + n, centre, mask=n < N)
    tl.store(rstd + sample * N + n, inverse, mask=n < N)

    inverse = tl.where(n < N, inverse, 0.0)
    scores = (scores - offset[:, None] * weight[None, :]) * (inverse * _LOG2E)[:, None]
    scores = tl.where((n < N)[:, None], scores, float("-inf"))
    peak = tl.max(scores, 0)
    p = tl.exp2(scores - peak[None, :])
    at = (block * B + sample) * R
    tl.store(peaks + at + r, peak, mask=in_rows)
    tl.store(sums + at + r, tl.sum(p, 0), mask=in_rows)
    p = tl.trans(p * inverse[:, None])
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        in_tokens = (n < N)[:, None] & (c < C)[None, :]
        x = tl.load(token + c[None, :], mask=in_tokens, other=0.0).to(tl.float32)
        x = tl.where(in_tokens, x - centre[:, None], 0.0)
        part = tl.dot(p, x, input_precision=PRECISION)
        in_part = in_rows[:, None] & (c < C)[None, :]
        tl.store(partials + at * C + (r[:, None] * C + c[None, :]), part, mask=in_part)


@triton.jit
def _combine_kernel(
    partials,
    peaks,
    sums,
    pooled,
    lse,
    blocks,
    B,
    R: tl.constexpr,
    C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Some elements of a sample's pooled rows, from the blocks' parts in order."""
    programs: tl.constexpr = (R * C + BLOCK_E - 1) // BLOCK_E
    sample = (tl.program_id(0) // programs).to(tl.int64)
    e = (tl.program_id(0) % programs) * BLOCK_E + tl.arange(0, BLOCK_E)
    r, in_rows = e // C, e < R * C
    peak = tl.full([BLOCK_E], float("-inf"), tl.float32)
    for first in range(0, blocks, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        inside = (s < blocks)[:, None] & in_rows[None, :]
        at = ((s * B + sample) * R)[:, None] + r[None, :]
        peak = tl.maximum(peak, tl.max(tl.load(peaks + at, mask=inside, other=float("-inf")), 0))
    peak = tl.where(in_rows, peak, 0.0)
    total = tl.where(in_rows, 0.0, 1.0)  # any but 0 where nothing is summed
    found = tl.zeros([BLOCK_E], tl.float32)
    for first in range(0, blocks, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        inside = (s < blocks)[:, None] & in_rows[None, :]
        at = ((s * B + sample) * R)[:, None] + r[None, :]
        scale = tl.load(peaks + at, mask=inside, other=float("-inf"))
        scale = tl.exp2(scale - peak[None, :])
        total += tl.sum(scale * tl.load(sums + at, mask=inside, other=0.0), 0)
        at = ((s * B + sample) * (R * C))[:, None] + e[None, :]
        found += tl.sum(scale * tl.load(partials + at, mask=inside, other=0.0), 0)
    tl.store(pooled + sample * (R * C) + e, found / total, mask=in_rows)
    tl.store(lse + sample * R + r, peak + tl.log2(total), mask=in_rows & (e % C == 0))


@triton.jit
def _backward_kernel(
    dpooled,
    rows,
    tokens,
    pooled,
    lse,
    mean,
    rstd,
    partials,
    dtokens,
    token_sample,
    token_row,
    B,
    N,
    R: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block's tokens: their gradients, and what they add to the rows'."""
    blocks = tl.cdiv(N, BLOCK_N)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    r, in_rows = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_R) < R
    dpooled += sample * R * C
    rows += sample * R * C
    pooled += sample * R * C
    token = tokens + (sample * token_sample + n.to(tl.int64) * token_row)[:, None]
    centre = tl.load(mean + sample * N + n, mask=n < N, other=0.0)
    inverse = tl.load(rstd + sample * N + n, mask=n < N, other=0.0)

    scores = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    dp = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    delta = tl.zeros([BLOCK_R], tl.float32)  # the sum of p dp over all tokens
    row_sum = tl.zeros([BLOCK_R], tl.float32)
    up_sum = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (n < N)[:, None] & (c < C)[None, :]
        y = tl.load(token + c[None, :], mask=inside, other=0.0).to(tl.float32)
        y = (y - centre[:, None]) * inverse[:, None]
        at = r[None, :] * C + c[:, None]
        inside = in_rows[None, :] & (c < C)[:, None]
        row = tl.load(rows + at, mask=inside, other=0.0)
        up = tl.load(dpooled + at, mask=inside, other=0.0)
        scores = tl.dot(y, row, scores, input_precision=PRECISION)
        dp = tl.dot(y, up, dp, input_precision=PRECISION)
        delta += tl.sum(up * tl.load(pooled + at, mask=inside, other=0.0), 0)
        row_sum += tl.sum(row, 0)
        up_sum += tl.sum(up, 0)
    top = tl.load(lse + sample * R + r, mask=in_rows, other=float("inf"))
    p = tl.where((n < N)[:, None], tl.exp2(scores * _LOG2E - top[None, :]), 0.0)
    dscores = p * (dp - delta[None, :])

    # A normalised token gets pᵀ dpooled + dscoresᵀ rows, and LayerNorm's backward takes off its
    # mean and its part along the token.
    along = tl.sum(p * dp + dscores * scores, 1) / C
    level = tl.sum(p * up_sum[None, :] + dscores * row_sum[None, :], 1) / C
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        in_tokens = (n < N)[:, None] & (c < C)[None, :]
        y = tl.load(token + c[None, :], mask=in_tokens, other=0.0).to(tl.float32)
        y = (y - centre[:, None]) * inverse[:, None]
        at = r[:, None] * C + c[None, :]
        inside = in_rows[:, None] & (c < C)[None, :]
        part = tl.dot(tl.trans(dscores), y, input_precision=PRECISION)
        tl.store(partials + (block * B + sample) * (R * C) + at, part, mask=inside)
        if dtokens is not None:
            up = tl.load(dpooled + at, mask=inside, other=0.0)
            row = tl.load(rows + at, mask=inside, other=0.0)
            dy = tl.dot(p, up, input_precision=PRECISION)
            dy = tl.dot(dscores, row, dy, input_precision=PRECISION)
            dy = (dy - level[:, None] - along[:, None] * y) * inverse[:, None]
            at = ((sample * N + n) * C)[:, None] + c[None, :]
            tl.store(dtokens + at, dy.to(dtokens.dtype.element_ty), mask=in_tokens)


def _options(
    tunable: Tunable, rows: Tensor, tokens: Tensor, **narrow_default: int
) -> dict[str, int | str]:
    _, R, C = rows.shape
    narrow = tokens.element_size() == 2
    default = {"BLOCK_N": 32, "BLOCK_C": 32, "num_warps": 8, "num_stages": 3}
    if narrow:
        default |= {"num_warps": 4} | narrow_default
    shape_class = f"R{R} C{C} {8 * tokens.element_size()}-bit"
    return {
        "R": R,
        "C": C,
        "BLOCK_R": max(power_of_2(R), 16),
        # The interpreter, which rounds nothing, knows no bf16x3.
        "PRECISION": "bf16x3" if narrow and not INTERPRETED else precision(),
        **tunable.options(tokens.device, shape_class, **default),
    }


def _adjacent(tokens: Tensor) -> Tensor:
    return tokens if tokens.stride(2) == 1 else tokens.contiguous()


def normalised_pooling(
    rows: Tensor, tokens: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, tokens = rows.contiguous(), _adjacent(tokens)
    (B, R, C), N = rows.shape, tokens.shape[1]
    options = _options(FORWARD, rows, tokens, BLOCK_N=64)
    blocks = cdiv(N, options["BLOCK_N"])
    pooled, lse = rows.new_empty(B, R, C), rows.new_empty(B, R)
    mean, rstd = rows.new_empty(B, N), rows.new_empty(B, N)
    partials = rows.new_empty(blocks, B, R, C)
    peaks, sums = rows.new_empty(blocks, B, R), rows.new_empty(blocks, B, R)
    launch(
        _pool_kernel,
        (B * blocks,),
        rows,
        tokens,
        partials,
        peaks,
        sums,
        mean,
        rstd,
        tokens.stride(0),
        tokens.stride(1),
        B,
        N,
        eps,
        **options,
    )
    launch(
        _combine_kernel,
        (B * cdiv(R * C, _BLOCK_E),),
        partials,
        peaks,
        sums,
        pooled,
        lse,
        blocks,
        B,
        R=R,
        C=C,
        BLOCK_S=_BLOCK_S,
        BLOCK_E=_BLOCK_E,
        num_warps=4,
    )
    return pooled, lse, mean, rstd


def normalised_pooling_backward(
    dpooled: Tensor,
    rows: Tensor,
    tokens: Tensor,
    pooled: Tensor,
    lse: Tensor,
    mean: Tensor,
    rstd: Tensor,
    want_tokens: bool,
) -> tuple[Tensor, Tensor]:
    rows, tokens = rows.contiguous(), _adjacent(tokens)
    (B, R, C), N = rows.shape, tokens.shape[1]
    options = _options(BACKWARD, rows, tokens, num_stages=2)
    blocks = cdiv(N, options["BLOCK_N"])
    drows = rows.new_empty(B, R, C)
    dtokens = tokens.new_empty((B, N, C) if want_tokens else 0)
    partials = rows.new_empty(blocks, B * R * C)
    launch(
        _backward_kernel,
        (B * blocks,),
        dpooled.contiguous(),
        rows,
        tokens,
        pooled,
        lse,
        mean,
        rstd,
        partials,
        dtokens if want_tokens else None,
        tokens.stride(0),
        tokens.stride(1),
        B,
        N,
        **options,
    )
    sum_partials(partials, [drows])
    return drows, dtokens
