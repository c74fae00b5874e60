"""Choosing tokens by importance, without a sort.

A radix select finds the least importance kept, a prefix sum where each token goes. Rows are 64-bit
offsets everywhere: they are gathered by index.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, launch, power_of_2
from .tuning import Tunable

_SPACE = [
    {"BLOCK_N": tokens, "BLOCK_C": channels, "num_warps": warps}
    for tokens, channels in ((16, 64), (32, 64), (64, 64), (16, 128), (32, 128), (16, 256))
    for warps in (4, 8)
]
SHRINK = Tunable("token_shrink", _SPACE)
SHRINK_BACKWARD = Tunable("token_shrink_backward", _SPACE)

# A representative's program: few channels, as the programs of a sample share nothing else.
_MERGED_TOKENS, _MERGED_CHANNELS = 128, 32


@triton.jit
def _order(value):
    """An unsigned integer above 0 that orders like the number: NaN first, both zeros alike."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, ~bits, bits ^ -(2**31)).to(tl.uint32, bitcast=True)
    return tl.where(value != value, 0xFFFFFFFF, key)


@triton.jit
def _share(value, total, otherwise):
    """The value over the total, ``otherwise`` where that is 0; exactly 1 for a single one."""
    nothing = total == 0
    return tl.where(nothing, otherwise, tl.div_rn(value, tl.where(nothing, 1.0, total)))


@triton.jit
def _select_kernel(importance, index, rest, weight, N, keep, BLOCK_N: tl.constexpr):
    """A sample: where its kept tokens stand, where the others, and what these weigh."""
    sample = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    inside = n < N
    value = tl.load(importance + sample * N + n, mask=inside, other=0.0)
    key = tl.where(inside, _order(value), 0)

    # The least key kept is the greatest that enough keys reach: two of its bits at a time, the
    # counts for three candidates being digits of one sum.
    least = tl.full([], 0, tl.uint32)
    bit = tl.full([], 1 << 30, tl.uint32)
    for _ in range(16):
        reached = (key >= least + bit).to(tl.int64)
        reached += (key >= least + bit * 2).to(tl.int64) << 16
        reached += (key >= least + bit * 3).to(tl.int64) << 32
        count = tl.sum(reached, 0)
        enough = ((count & 0xFFFF) >= keep).to(tl.uint32)
        enough += (((count >> 16) & 0xFFFF) >= keep).to(tl.uint32)
        enough += ((count >> 32) >= keep).to(tl.uint32)
        least += enough * bit
        bit = bit >> 2

    # Of the equal ones the first are kept; both running counts are digits of one prefix sum.
    above = (key > least).to(tl.int32)
    equal = (key == least).to(tl.int32)
    room = keep - tl.sum(above, 0)
    counted = above + (equal << 16)
    before = tl.cumsum(counted, 0) - counted
    kept = (above == 1) | ((equal == 1) & ((before >> 16) < room))
    position = (before & 0xFFFF) + tl.minimum(before >> 16, room)
    tl.store(index + sample * keep + position, n.to(tl.int64), mask=kept)

    dropped = inside & (kept == 0)
    total = tl.sum(tl.where(dropped, value, 0.0), 0)
    share = _share(value, total, 1.0 / (N - keep))
    at = sample * (N - keep) + (n - position)
    tl.store(rest + at, n, mask=dropped)
    tl.store(weight + at, share, mask=dropped)


@triton.jit
def _merge(
    representative,
    x,
    rest,
    weight,
    x_row,
    dropped,
    first,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Some channels of a representative."""
    c = first + tl.arange(0, BLOCK_C)
    merged = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, dropped, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        token = tl.load(rest + j, mask=j < dropped, other=0).to(tl.int64)
        share = tl.load(weight + j, mask=j < dropped, other=0.0)
        inside = (j < dropped)[:, None] & (c < C)[None, :]
        row = tl.load(x + (token * x_row)[:, None] + c[None, :], mask=inside, other=0.0)
        merged += share[:, None] * row.to(tl.float32)
    merged = tl.sum(merged, 0).to(representative.dtype.element_ty)
    tl.store(representative + c, merged, mask=c < C)


@triton.jit
def _gather_kernel(
    tokens,
    x,
    prefix,
    index,
    rest,
    weight,
    x_sample,
    x_row,
    prefix_sample,
    prefix_row,
    N,
    keep,
    prefixed,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    MERGED_TOKENS: tl.constexpr,
    MERGED_CHANNELS: tl.constexpr,
):
    """Some channels of a sample's representative, or some of the rows before it."""
    merging: tl.constexpr = (C + MERGED_CHANNELS - 1) // MERGED_CHANNELS
    copied = prefixed + keep
    programs = merging + tl.cdiv(copied, BLOCK_N)
    sample = (tl.program_id(0) // programs).to(tl.int64)
    program = tl.program_id(0) % programs
    x += sample * x_sample
    tokens += sample * (copied + 1) * C
    if program < merging:
        _merge(
            tokens + copied * C,
            x,
            rest + sample * (N - keep),
            weight + sample * (N - keep),
            x_row,
            N - keep,
            program * MERGED_CHANNELS,
            C,
            MERGED_TOKENS,
            MERGED_CHANNELS,
        )
    else:
        row = (program - merging) * BLOCK_N + tl.arange(0, BLOCK_N)
        kept = (row >= prefixed) & (row < copied)
        token = tl.load(index + sample * keep + (row - prefixed), mask=kept, other=0)
        for first in range(0, C, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            inside = kept[:, None] & (c < C)[None, :]
            value = tl.load(x + (token * x_row)[:, None] + c[None, :], mask=inside, other=0.0)
            inside = (row < copied)[:, None] & (c < C)[None, :]
            if prefix is not None:
                at = (sample * prefix_sample + row.to(tl.int64) * prefix_row)[:, None] + c[None, :]
                front = (row < prefixed)[:, None]
                value = tl.where(front, tl.load(prefix + at, mask=inside & front, other=0.0), value)
            tl.store(tokens + (row.to(tl.int64) * C)[:, None] + c[None, :], value, mask=inside)


@triton.jit
def _slot(index, n, K, STEPS: tl.constexpr):
    """How many of an ascending index lie before each token, and whether the token is the next."""
    slot = n * 0
    for step in tl.static_range(STEPS):
        probe = slot + (1 << (STEPS - 1 - step))
        before = (probe <= K) & (tl.load(index + probe - 1, mask=probe <= K, other=0) < n)
        slot = tl.where(before, probe, slot)
    return slot, tl.load(index + slot, mask=slot < K, other=-1) == n


@triton.jit
def _slope_kernel(
    last,
    x,
    importance,
    index,
    slots,
    slopes,
    sums,
    last_sample,
    x_sample,
    x_row,
    N,
    K,
    C: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Some tokens: where they were put (-1: dropped), and the gradients of the dropped ones'
    weights; of these the sum of importance, and the mean gradient, weighted by it."""
    blocks = tl.cdiv(N, BLOCK_N)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    slot, kept = _slot(index + sample * K, n, K, STEPS)
    dropped = (n < N) & (kept == 0)
    x += sample * x_sample
    last += sample * last_sample
    slope = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = dropped[:, None] & (c < C)[None, :]
        row = tl.load(x + (n.to(tl.int64) * x_row)[:, None] + c[None, :], mask=inside, other=0.0)
        slope += row.to(tl.float32) * tl.load(last + c, mask=c < C, other=0.0).to(tl.float32)
    slope = tl.sum(slope, 1)
    value = tl.load(importance + sample * N + n, mask=dropped, other=0.0)
    tl.store(slots + sample * N + n, tl.where(kept, slot, -1), mask=n < N)
    tl.store(slopes + sample * N + n, slope, mask=dropped)
    total = tl.sum(value, 0)
    mean = tl.sum(_share(value, total, 0.0) * slope, 0)
    sums += tl.program_id(0).to(tl.int64) * 2
    tl.store(sums, total)
    tl.store(sums + 1, mean)


@triton.jit
def _shrink_backward_kernel(
    dtokens,
    importance,
    slots,
    slopes,
    sums,
    dx,
    dimportance,
    dtokens_sample,
    dtokens_row,
    N,
    K,
    P,
    C: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Some tokens' gradients and their importances'."""
    blocks = tl.cdiv(N, BLOCK_N)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    sums += (sample * blocks + block) * 2
    part = tl.load(sums, mask=block < blocks, other=0.0)
    total = tl.sum(part, 0)
    means = tl.load(sums + 1, mask=block < blocks, other=0.0)
    mean = tl.sum(_share(part, total, 0.0) * means, 0)

    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = sample * N + n
    slot = tl.load(slots + at, mask=n < N, other=0)
    dropped = (n < N) & (slot < 0)
    value = tl.load(importance + at, mask=dropped, other=0.0)
    share = _share(value, total, 1.0 / (N - K))
    slope = tl.load(slopes + at, mask=dropped, other=0.0)
    slope = _share(slope - mean, total, 0.0)
    tl.store(dimportance + at, tl.where(dropped, slope, 0.0), mask=n < N)

    share = tl.where(dropped, share, 1.0)
    row = tl.where(dropped, P + K, P + slot).to(tl.int64)
    dtokens += sample * dtokens_sample
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (n < N)[:, None] & (c < C)[None, :]
        up = tl.load(dtokens + (row * dtokens_row)[:, None] + c[None, :], mask=inside, other=0.0)
        up = up.to(tl.float32) * share[:, None]
        tl.store(dx + (at * C)[:, None] + c[None, :], up.to(dx.dtype.element_ty), mask=inside)


def _options(tunable: Tunable, x: Tensor) -> dict[str, int]:
    C = x.shape[2]
    default = {"BLOCK_N": 32, "BLOCK_C": min(power_of_2(max(C, 1)), 64), "num_warps": 4}
    return {"C": C} | tunable.options(x.device, f"C{C} {8 * x.element_size()}-bit", **default)


def token_shrink(
    x: Tensor, importance: Tensor, keep: int, prefix: Tensor | None
) -> tuple[Tensor, Tensor]:
    B, N, C = x.shape
    prefixed = 0 if prefix is None else prefix.shape[1]
    tokens = x.new_empty(B, prefixed + keep + 1, C)
    index = x.new_empty(B, keep, dtype=torch.int64)
    rest = x.new_empty(B, N - keep, dtype=torch.int32)
    weight = x.new_empty(B, N - keep, dtype=torch.float32)
    block = power_of_2(N)
    launch(
        _select_kernel,
        (B,),
        importance,
        index,
        rest,
        weight,
        N,
        keep,
        BLOCK_N=block,
        num_warps=min(max(block // 256, 4), 16),
    )
    options = _options(SHRINK, x)
    copying = cdiv(prefixed + keep, options["BLOCK_N"])
    launch(
        _gather_kernel,
        (B * (cdiv(C, _MERGED_CHANNELS) + copying),),
        tokens,
        x,
        prefix,
        index,
        rest,
        weight,
        x.stride(0),
        x.stride(1),
        0 if prefix is None else prefix.stride(0),
        0 if prefix is None else prefix.stride(1),
        N,
        keep,
        prefixed,
        MERGED_TOKENS=_MERGED_TOKENS,
        MERGED_CHANNELS=_MERGED_CHANNELS,
        **options,
    )
    return tokens, index


def token_shrink_backward(
    dtokens: Tensor, x: Tensor, importance: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    B, N, C = x.shape
    K = index.shape[1]
    P = dtokens.shape[1] - K - 1
    options = _options(SHRINK_BACKWARD, x)
    blocks = cdiv(N, options["BLOCK_N"])
    dx, dimportance = x.new_empty(B, N, C), importance.new_empty(B, N)
    slots = x.new_empty(B, N, dtype=torch.int32)
    slopes = x.new_empty(B, N, dtype=torch.float32)
    sums = x.new_empty(B, blocks, 2, dtype=torch.float32)
    launch(
        _slope_kernel,
        (B * blocks,),
        dtokens[:, -1],
        x,
        importance,
        index,
        slots,
        slopes,
        sums,
        dtokens.stride(0),
        x.stride(0),
        x.stride(1),
        N,
        K,
        STEPS=K.bit_length(),
        **options,
    )
    launch(
        _shrink_backward_kernel,
        (B * blocks,),
        dtokens,
        importance,
        slots,
        slopes,
        sums,
        dx,
        dimportance,
        dtokens.stride(0),
        dtokens.stride(1),
        N,
        K,
        P,
        BLOCKS=power_of_2(blocks),
        **options,
    )
    return dx, dimportance
