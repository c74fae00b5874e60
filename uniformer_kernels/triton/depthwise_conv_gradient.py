"""Gradients of the depthwise convolution.

The input's is the convolution of ``dy`` with the kernel turned round. The weight's slides tiles of
``dy`` over ``x``, taps being the sums. One kernel for both would save reading ``dy`` again, but its
lanes would need the registers of both, and from 5x5x5 on neither waits for memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .depthwise_conv import (
    SPACE,
    convolve,
    load_row,
    locate,
    rows_for_frames,
    shape_class,
    slide,
    tile,
    vector,
)
from .launch import cdiv, launch, wide
from .partials import sum_partials
from .tuning import Tunable

OPTIONS = Tunable("depthwise_conv3d_weight", space=SPACE)

_ALL_FRAMES = 27
"""Up to so many taps fit a lane's registers beside a tile; of more, a program has one frame's."""

_TILES = 4
"""So many a lane, that adding lanes up takes little of a program's time."""

_PROGRAMS = 1024
"""At most, that adding partial sums up takes little time."""


@triton.jit
def _kernel(
    dy,
    x,
    partials,
    groups,
    B,
    T,
    H,
    W,
    dy_b,
    dy_t,
    dy_h,
    dy_c,
    x_b,
    x_t,
    x_h,
    x_c,
    C: tl.constexpr,
    dy_w: tl.constexpr,
    x_w: tl.constexpr,
    VECTOR: tl.constexpr,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FRAMES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # Counted in vectors outside, so that the compiler knows them to be multiples.
    x_b, x_t, x_h = x_b * VECTOR, x_t * VECTOR, x_h * VECTOR
    dy_b, dy_t, dy_h = dy_b * VECTOR, dy_t * VECTOR, dy_h * VECTOR
    if WIDE:
        x_h, dy_h = tl.cast(x_h, tl.int64), tl.cast(dy_h, tl.int64)

    program = tl.program_id(0)
    blocks = tl.cdiv(C, BLOCK_C)
    k = program // blocks % (KT // FRAMES) * FRAMES
    group = program // blocks // (KT // FRAMES)
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    x += c.to(tl.int64) * x_c
    dy += c.to(tl.int64) * dy_c

    # Frames of dy that some frame of x meets.
    first = tl.maximum(KT // 2 - k - FRAMES + 1, 0)
    frames = tl.maximum(tl.minimum(T, T + KT // 2 - k) - first, 0)
    tiles = B * frames * tl.cdiv(H, ROWS) * tl.cdiv(W, COLUMNS)
    zero = tl.zeros([SLOTS, BLOCK_C], tl.float32)
    sums = (((zero,) * KW,) * KH,) * FRAMES
    bias = zero
    for begin in range(group * SLOTS, tiles, groups * SLOTS):
        place = begin + tl.arange(0, SLOTS)[:, None]
        inside = (place < tiles) & (c < C)
        frame, h, w = locate(place, H, W, ROWS, COLUMNS)
        b, t = frame // frames, first + frame % frames
        b, h_, w_ = b.to(tl.int64), h.to(tl.int64), w.to(tl.int64)
        own = dy + (b * dy_b + t.to(tl.int64) * dy_t + h_ * dy_h + w_ * dy_w)
        taps = ()
        for i in tl.static_range(ROWS):
            row = load_row(own + i * dy_h, dy_w, inside & (h + i < H), w, W, COLUMNS)
            for j in tl.static_range(COLUMNS):
                bias += row[j]
            taps += (row,)
        corner = x + (b * x_b + (h_ - KH // 2) * x_h + (w_ - KW // 2) * x_w)
        found = ()
        for f in tl.static_range(FRAMES):
            s = t + k + f - KT // 2
            meets = inside & (s.to(tl.uint32) < T)
            window = sums[f]
            for i in tl.static_range(ROWS + KH - 1):
                here = meets & ((h + i - KH // 2).to(tl.uint32) < H)
                at = corner + (s.to(tl.int64) * x_t + i * x_h)
                row = load_row(at, x_w, here, w - KW // 2, W, COLUMNS + KW - 1)
                window = slide(window, row, i, taps, KH, KW, ROWS, COLUMNS)
            found += (window,)
        sums = found

    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    partials += group.to(tl.int64) * C * (KT * KH * KW + 1)
    for f in tl.static_range(FRAMES):
        for i in tl.static_range(KH):
            for j in tl.static_range(KW):
                tap = ((k + f) * KH + i) * KW + j
                at = partials + c * (KT * KH * KW) + tap
                tl.store(at, tl.sum(sums[f][i][j], 0), mask=c < C)
    # The kernel's middle frame meets every dy.
    here = c < tl.where((k <= KT // 2) & (k + FRAMES > KT // 2), C, 0)
    tl.store(partials + C * (KT * KH * KW) + c, tl.sum(bias, 0), mask=here)


def depthwise_conv3d_backward(
    dy: Tensor, x: Tensor, weight: Tensor, residual: bool, want_input: bool, want_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``csrc/library.cpp``."""
    dx = x.new_empty(x.shape if want_input else 0)
    dw = weight.new_empty(weight.shape if want_weight else 0)
    db = weight.new_empty(weight.shape[0] if want_weight else 0)
    if want_input:
        convolve(dy, weight, dx, residual=residual, flip=True)
    if want_weight:
        sum_partials(_weight_partials(dy, x, weight), [dw, db])
    return dx, dw, db


def _weight_partials(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The weight's and, behind, the bias's gradient as every group of programs found them."""
    kernel, dy, x = rows_for_frames(weight, dy, x)
    KT, KH, KW = kernel
    B, T, H, W, C = x.shape
    frames = KT if KT * KH * KW <= _ALL_FRAMES else 1
    default = tile(x, kernel)
    if frames > 1:  # whose taps need the room
        default["ROWS"] = 2
    options = OPTIONS.options(x.device, shape_class(x, kernel), **default)
    parts = KT // frames * cdiv(C, options["BLOCK_C"])
    tiles = B * T * cdiv(H, options["ROWS"]) * cdiv(W, options["COLUMNS"])
    groups = max(1, min(cdiv(tiles, options["SLOTS"] * _TILES), _PROGRAMS // max(parts, 1)))
    partials = x.new_empty(groups, C * (KT * KH * KW + 1), dtype=torch.float32)
    step = vector(dy, x)
    launch(
        _kernel,
        (groups * parts,),
        dy,
        x,
        partials,
        groups,
        B,
        T,
        H,
        W,
        *(stride // step for stride in dy.stride()[:3]),
        dy.stride(4),
        *(stride // step for stride in x.stride()[:3]),
        x.stride(4),
        C=C,
        dy_w=dy.stride(3),
        x_w=x.stride(3),
        VECTOR=step,
        KT=KT,
        KH=KH,
        KW=KW,
        FRAMES=frames,
        WIDE=wide(dy, x),
        **options,
    )
    return partials
