"""Depthwise convolution: every lane slides the kernel over a tile of positions of its channel.

A lane keeps its tile's sums and one frame's taps in registers, so that a number it loads meets up
to ``KH * KW`` of them. A program has ``[SLOTS, BLOCK_C]`` lanes: tiles of one frame of any samples,
times channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .launch import cdiv, launch, wide
from .tuning import Tunable

SPACE = [
    {"ROWS": rows, "COLUMNS": columns, "BLOCK_C": block, "SLOTS": slots}
    for rows, columns in ((2, 7), (2, 14), (4, 4), (4, 5), (4, 7), (7, 4))
    for block, slots in ((64, 4), (32, 8))
]
OPTIONS = Tunable("depthwise_conv3d", space=SPACE)

_PACKED = 2**20
"""From so many elements on, copying a weight costs less than reading it across channels."""


@triton.jit
def load_row(pointers, step, inside, column, W, N: tl.constexpr):
    """``N`` numbers of a row from ``column`` on, in float32; zeros where the map has none."""
    row = ()
    for n in tl.static_range(N):
        # One comparison: a column left of the map is a large one without its sign.
        here = inside & ((column + n).to(tl.uint32) < W)
        row += (tl.load(pointers + n * step, mask=here, other=0.0).to(tl.float32),)
    return row


@triton.jit
def _correlate(sums, row, taps, N: tl.constexpr, K: tl.constexpr):
    """``sums[n] + Σₖ row[n + k] taps[k]``."""
    found = ()
    for n in tl.static_range(N):
        total = sums[n]
        for k in tl.static_range(K):
            total += row[n + k] * taps[k]
        found += (total,)
    return found


@triton.jit
def slide(
    sums, row, at, taps, M: tl.constexpr, N: tl.constexpr, KM: tl.constexpr, KN: tl.constexpr
):
    """Add to ``[M, N]`` sums what row ``at`` of their window gives with ``[KM, KN]`` taps."""
    found = ()
    for m in tl.static_range(M):
        if at - m >= 0 and at - m < KM:
            found += (_correlate(sums[m], row, taps[at - m], N, KN),)
        else:
            found += (sums[m],)
    return found


@triton.jit
def locate(tile, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Which map a tile is in, and its first row and column."""
    across = tl.cdiv(W, COLUMNS)
    down = tl.cdiv(H, ROWS)
    return tile // across // down, tile // across % down * ROWS, tile % across * COLUMNS


@triton.jit
def _kernel(
    x,
    weight,
    bias,
    shift,
    y,
    partials,
    tiles,
    T,
    H,
    W,
    x_b,
    x_t,
    x_h,
    x_c,
    y_b,
    y_t,
    y_h,
    C: tl.constexpr,
    x_w: tl.constexpr,
    y_w: tl.constexpr,
    VECTOR: tl.constexpr,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PACKED: tl.constexpr,
    FLIP: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # Counted in vectors outside, so that the compiler knows them to be multiples.
    x_b, x_t, x_h = x_b * VECTOR, x_t * VECTOR, x_h * VECTOR
    y_b, y_t, y_h = y_b * VECTOR, y_t * VECTOR, y_h * VECTOR
    if WIDE:
        x_h, y_h = tl.cast(x_h, tl.int64), tl.cast(y_h, tl.int64)

    program = tl.program_id(0)
    blocks = tl.cdiv(C, BLOCK_C)
    group = program // blocks
    t = group % T
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    tile = group // T * SLOTS + tl.arange(0, SLOTS)[:, None]
    inside = (tile < tiles) & (c < C)
    b, h, w = locate(tile, H, W, ROWS, COLUMNS)
    b, t_, h_, w_ = b.to(tl.int64), t.to(tl.int64), h.to(tl.int64), w.to(tl.int64)
    x += b * x_b + t_ * x_t + h_ * x_h + w_ * x_w + c.to(tl.int64) * x_c
    y += b * y_b + t_ * y_t + h_ * y_h + w_ * y_w + c

    start = tl.zeros([SLOTS, BLOCK_C], tl.float32)
    if bias is not None:
        start += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    sums = ()
    for m in tl.static_range(ROWS):
        begin = (start,) * COLUMNS
        if RESIDUAL:
            own = load_row(x + m * x_h, x_w, inside & (h + m < H), w, W, COLUMNS)
            begin = _correlate(begin, own, (1.0,), COLUMNS, 1)
        sums += (begin,)

    weight += c if PACKED else c * (KT * KH * KW)
    tap_step = C if PACKED else 1
    x -= (KH // 2) * x_h + (KW // 2) * x_w
    first, last = tl.maximum(KT // 2 - t, 0), tl.minimum(KT, T + KT // 2 - t)
    for step in range(program * KT + first, program * KT + last):
        k = step % KT
        # Zero, which the compiler cannot know: else it would compute the mask and the offset of
        # every load of the window before the loop, and keep them in registers it has not got.
        zero = step // KT - program
        h_k, w_k, x_hk = h + zero, w + zero, x_h + zero * VECTOR
        taps = ()
        for i in tl.static_range(KH):
            row = ()
            for j in tl.static_range(KW):
                tap = (k * KH + i) * KW + j
                if FLIP:
                    tap = KT * KH * KW - 1 - tap
                at = tl.broadcast_to(weight + tap * tap_step, SLOTS, BLOCK_C)
                row += (tl.load(at, mask=inside, other=0.0).to(tl.float32),)
            taps += (row,)
        frame = x + tl.cast(k - KT // 2, tl.int64) * x_t
        for i in tl.static_range(ROWS + KH - 1):
            here = inside & ((h_k + i - KH // 2).to(tl.uint32) < H)
            row = load_row(frame + i * x_hk, x_w, here, w_k - KW // 2, W, COLUMNS + KW - 1)
            sums = slide(sums, row, i, taps, ROWS, COLUMNS, KH, KW)

    first = tl.zeros([SLOTS, BLOCK_C], tl.float32)
    second = tl.zeros([SLOTS, BLOCK_C], tl.float32)
    less = 0.0
    if shift is not None:
        less = tl.load(shift + c, mask=c < C, other=0.0)
    for m in tl.static_range(ROWS):
        for n in tl.static_range(COLUMNS):
            here = inside & (h + m < H) & (w + n < W)
            stored = sums[m][n].to(y.dtype.element_ty)
            tl.store(y + (m * y_h + n * y_w), stored, mask=here)
            if partials is not None:
                centred = tl.where(here, stored.to(tl.float32) - less, 0.0)
                first += centred
                second += centred * centred
    if partials is not None:
        c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
        partials += group.to(tl.int64) * 2 * C + c
        tl.store(partials, tl.sum(first, 0), mask=c < C)
        tl.store(partials + C, tl.sum(second, 0), mask=c < C)


def depthwise_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    """See ``csrc/library.cpp``."""
    y = x.new_empty(x.shape)
    convolve(x, weight, y, bias=bias, residual=residual)
    return y


def depthwise_conv3d_with_moments(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See ``library.py``."""
    y = x.new_empty(x.shape)
    partials = convolve(x, weight, y, bias=bias, residual=residual, shift=shift, moments=True)
    return y, partials.sum(0)


def convolve(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    residual: bool = False,
    flip: bool = False,
    shift: Tensor | None = None,
    moments: bool = False,
) -> Tensor | None:
    """Write the convolution of ``x`` into ``y``, whose channels are adjacent.

    ``flip`` turns the kernel round. With ``moments``, returns what every program found them to be,
    ``[programs, 2, C]``.
    """
    taps, packed = _pack(weight, x.numel() >= _PACKED)
    kernel, x, y = rows_for_frames(weight, x, y)
    B, T, H, W, C = x.shape
    options = OPTIONS.options(x.device, shape_class(x, kernel), **tile(x, kernel))
    tiles = B * cdiv(H, options["ROWS"]) * cdiv(W, options["COLUMNS"])
    groups = cdiv(tiles, options["SLOTS"]) * T
    partials = x.new_empty(groups, 2, C, dtype=torch.float32) if moments else None
    step = vector(x, y)
    launch(
        _kernel,
        (groups * cdiv(C, options["BLOCK_C"]),),
        x,
        taps,
        None if bias is None else bias.contiguous(),
        None if shift is None else shift.contiguous(),
        y,
        partials,
        tiles,
        T,
        H,
        W,
        *(stride // step for stride in x.stride()[:3]),
        x.stride(4),
        *(stride // step for stride in y.stride()[:3]),
        C=C,
        x_w=x.stride(3),
        y_w=y.stride(3),
        VECTOR=step,
        KT=kernel[0],
        KH=kernel[1],
        KW=kernel[2],
        PACKED=packed,
        FLIP=flip,
        RESIDUAL=residual,
        WIDE=wide(x, y),
        **options,
    )
    return partials


def _pack(weight: Tensor, worth_it: bool) -> tuple[Tensor, bool]:
    """``[taps, C]`` if the weight lies so or copying is worth it, else ``[C, taps]``; and which."""
    taps = weight.flatten(1).t()
    packed = worth_it or taps.is_contiguous()
    return taps.contiguous() if packed else taps.t().contiguous(), packed


def rows_for_frames(weight: Tensor, *maps: Tensor) -> tuple[Any, ...]:
    """The kernel's size and the maps; frames as rows if rows have none, as rows are read once."""
    kt, kh, kw = weight.shape[2:]
    if kh > 1:
        return (kt, kh, kw), *maps
    return (1, kt, kw), *(t.transpose(1, 2) for t in maps)


def vector(*maps: Tensor) -> int:
    """How many channels lie next to each other in all maps wherever a lane begins."""
    if any(t.stride(4) != 1 for t in maps):
        return 1
    return math.gcd(8, maps[0].shape[4], *(stride for t in maps for stride in t.stride()[:4]))


def shape_class(x: Tensor, kernel: tuple[int, int, int]) -> str:
    """What the best tile depends on."""
    size = "x".join(map(str, kernel))
    return f"k{size} {x.shape[2]}x{x.shape[3]} C{x.shape[4]} {8 * x.element_size()}-bit"


def tile(x: Tensor, kernel: tuple[int, int, int]) -> dict[str, int]:
    """A good tile: what a lane loads is used often, and little of it lies outside the map."""
    _, kh, kw = kernel
    if INTERPRETED:  # which takes its time per operation, not per lane
        return {"ROWS": 2, "COLUMNS": 2, "BLOCK_C": 64, "SLOTS": 256, "num_warps": 4}
    if kw == 1:
        rows, columns = (8, 7, 5), (2, 1)
    elif kh * kw > 25:
        rows, columns = (2, 1), (7, 5)
    else:
        columns = (7, 5)
        rows = (4,) if _fit(x.shape[3], columns) == 7 else (5, 4)
        if kh * kw > 9 and x.element_size() == 4:  # what is loaded ahead takes twice the registers
            rows = (3,)
    block = _fit(x.shape[4], (64, 32, 16))
    lanes = 128 if kh * kw > 25 else 256  # two channels' taps would take a hundred registers
    return {
        "ROWS": _fit(x.shape[2], rows),
        "COLUMNS": _fit(x.shape[3], columns),
        "BLOCK_C": block,
        "SLOTS": lanes // block,
        "num_warps": 4,
    }


def _fit(size: int, choices: tuple[int, ...]) -> int:
    """The choice whose multiples exceed ``size`` least; of equals the first."""
    return min(choices, key=lambda choice: cdiv(size, choice) * choice)
