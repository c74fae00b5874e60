"""The two halves of a local block at inference: maps are convolved and multiplied on the chip.

Lanes slide the kernel over tiles of positions as in ``depthwise_conv``; what they found is then the
left operand of a product, a row a position, with as many columns as there are channels at once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .activation import activate
from .depthwise_conv import _PACKED, _fit, _pack, load_row, locate, shape_class, slide, vector
from .launch import cdiv, launch, power_of_2, precision, wide
from .tuning import Tunable


def _space(*tiles: tuple[int, ...]) -> list[dict[str, int]]:
    names = ("ROWS", "COLUMNS", "SLOTS", "num_warps")
    return [dict(zip(names, tile, strict=True)) for tile in tiles]


_TILES = _space(
    (4, 8, 4, 8), (4, 8, 2, 8), (4, 8, 2, 4), (4, 8, 4, 4),
    (4, 4, 4, 8), (4, 4, 4, 4), (4, 4, 8, 8), (2, 8, 4, 8),
)  # fmt: skip
LINEAR = Tunable("depthwise_linear", _TILES)
FEED_FORWARD = Tunable(
    "depthwise_feed_forward",
    [*_TILES, *(tile | {"BLOCK_H": 32} for tile in _TILES[:4])],
)


@triton.jit
def _stack(sums, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LEVELS: tl.constexpr):
    """``[ROWS, COLUMNS]`` tensors ``[SLOTS, BLOCK]`` as ``[SLOTS * ROWS * COLUMNS, BLOCK]``."""
    found = ()
    for m in tl.static_range(ROWS):
        found += sums[m]
    for level in tl.static_range(LEVELS):
        pairs = ()
        for i in tl.static_range(2 ** (LEVELS - 1 - level)):
            pairs += (tl.join(found[i], found[i + 2 ** (LEVELS - 1 - level)]),)
        found = pairs
    SLOTS: tl.constexpr = sums[0][0].shape[0]
    BLOCK: tl.constexpr = sums[0][0].shape[1]
    stacked = tl.reshape(found[0], (SLOTS, BLOCK, ROWS * COLUMNS))
    return tl.reshape(tl.permute(stacked, (0, 2, 1)), (SLOTS * ROWS * COLUMNS, BLOCK))


@triton.jit
def _convolve(
    x,
    weight,
    bias,
    first,
    c,
    tiles,
    t,
    T,
    H,
    W,
    x_b,
    x_t,
    x_h,
    x_c,
    C: tl.constexpr,
    x_w: tl.constexpr,
    VECTOR: tl.constexpr,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PACKED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """A row for every position of the tiles from ``first`` on, in frame ``t``; channels ``c``."""
    x_b, x_t, x_h = x_b * VECTOR, x_t * VECTOR, x_h * VECTOR
    if WIDE:
        x_h = tl.cast(x_h, tl.int64)
    c = c[None, :]
    tile = first + tl.arange(0, SLOTS)[:, None]
    inside = (tile < tiles) & (c < C)
    b, h, w = locate(tile, H, W, ROWS, COLUMNS)
    b, t_, h_, w_ = b.to(tl.int64), t.to(tl.int64), h.to(tl.int64), w.to(tl.int64)
    x += b * x_b + t_ * x_t + h_ * x_h + w_ * x_w + c.to(tl.int64) * x_c

    start = tl.zeros([SLOTS, BLOCK_K], tl.float32)
    if bias is not None:
        start += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    sums = ((start,) * COLUMNS,) * ROWS
    if RESIDUAL:
        for m in tl.static_range(ROWS):
            own = load_row(x + m * x_h, x_w, inside & (h + m < H), w, W, COLUMNS)
            sums = slide(sums, own, m, ((1.0,),), ROWS, COLUMNS, 1, 1)

    weight += c if PACKED else c * (KT * KH * KW)
    tap_step = C if PACKED else 1
    x -= (KH // 2) * x_h + (KW // 2) * x_w
    base = tl.program_id(0)
    for step in range(
        base * KT + tl.maximum(KT // 2 - t, 0), base * KT + tl.minimum(KT, T + KT // 2 - t)
    ):
        k = step % KT
        # Zero, as in ``depthwise_conv``: keeps masks and offsets of the window out of registers.
        zero = step // KT - base
        h_k, w_k, x_hk = h + zero, w + zero, x_h + zero * VECTOR
        taps = ()
        for i in tl.static_range(KH):
            row = ()
            for j in tl.static_range(KW):
                at = tl.broadcast_to(weight + ((k * KH + i) * KW + j) * tap_step, SLOTS, BLOCK_K)
                row += (tl.load(at, mask=inside, other=0.0).to(tl.float32),)
            taps += (row,)
        frame = x + tl.cast(k - KT // 2, tl.int64) * x_t
        for i in tl.static_range(ROWS + KH - 1):
            here = inside & ((h_k + i - KH // 2).to(tl.uint32) < H)
            row = load_row(frame + i * x_hk, x_w, here, w_k - KW // 2, W, COLUMNS + KW - 1)
            sums = slide(sums, row, i, taps, ROWS, COLUMNS, KH, KW)
    return _stack(sums, ROWS, COLUMNS, LEVELS)


@triton.jit
def _positions(
    first,
    tiles,
    t,
    T,
    H,
    W,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Every row's position, counted over the whole map, and whether it is one."""
    i = tl.arange(0, SLOTS * ROWS * COLUMNS)
    tile, inner = first + i // (ROWS * COLUMNS), i % (ROWS * COLUMNS)
    b, h, w = locate(tile, H, W, ROWS, COLUMNS)
    h, w = h + inner // COLUMNS, w + inner % COLUMNS
    position = ((b.to(tl.int64) * T + t) * H + h) * W + w
    return position, (tile < tiles) & (h < H) & (w < W)


@triton.jit
def _linear_kernel(
    x,
    dw_weight,
    dw_bias,
    weight,
    bias,
    y,
    z,
    tiles,
    T,
    H,
    W,
    x_b,
    x_t,
    x_h,
    x_c,
    C: tl.constexpr,
    N: tl.constexpr,
    x_w: tl.constexpr,
    VECTOR: tl.constexpr,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PACKED: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    t, first = tl.program_id(0) % T, tl.program_id(0) // T * SLOTS
    n = tl.arange(0, BLOCK_N)
    in_n = n < N
    product = tl.zeros([SLOTS * ROWS * COLUMNS, BLOCK_N], tl.float32)
    for start in range(0, C, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        in_c = c < C
        tile = _convolve(
            x, dw_weight, dw_bias, first, c, tiles, t, T, H, W, x_b, x_t, x_h, x_c, C, x_w, VECTOR,
            KT, KH, KW, PACKED, True, WIDE, ROWS, COLUMNS, SLOTS, BLOCK_K, LEVELS,
        ).to(y.dtype.element_ty)  # fmt: skip
        position, inside = _positions(first, tiles, t, T, H, W, ROWS, COLUMNS, SLOTS)
        at = position[:, None] * C + c[None, :]
        tl.store(y + at, tile, mask=inside[:, None] & in_c[None, :])
        at_weight = weight + (n[None, :] * C + c[:, None])
        right = tl.load(at_weight, mask=in_n[None, :] & in_c[:, None], other=0.0)
        product = tl.dot(tile, right, product, input_precision=PRECISION)
    if bias is not None:
        product += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    position, inside = _positions(first, tiles, t, T, H, W, ROWS, COLUMNS, SLOTS)
    at = position[:, None] * N + n[None, :]
    tl.store(z + at, product.to(z.dtype.element_ty), mask=inside[:, None] & in_n[None, :])


@triton.jit
def _feed_forward_kernel(
    x,
    residual,
    dw_weight,
    dw_bias,
    pw_weight,
    pw_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    y,
    tiles,
    T,
    H,
    W,
    x_b,
    x_t,
    x_h,
    x_c,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    x_w: tl.constexpr,
    VECTOR: tl.constexpr,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PACKED: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    t, first = tl.program_id(0) % T, tl.program_id(0) // T * SLOTS
    n = tl.arange(0, BLOCK_C)
    in_n = n < C
    product = tl.zeros([SLOTS * ROWS * COLUMNS, BLOCK_C], tl.float32)
    for start in range(0, C, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        tile = _convolve(
            x, dw_weight, dw_bias, first, c, tiles, t, T, H, W, x_b, x_t, x_h, x_c, C, x_w, VECTOR,
            KT, KH, KW, PACKED, False, WIDE, ROWS, COLUMNS, SLOTS, BLOCK_K, LEVELS,
        ).to(x.dtype.element_ty)  # fmt: skip
        at_pw = pw_weight + (n[None, :] * C + c[:, None])
        pw = tl.load(at_pw, mask=in_n[None, :] & (c < C)[:, None], other=0.0)
        product = tl.dot(tile, pw, product, input_precision=PRECISION)
    if pw_bias is not None:
        product += tl.load(pw_bias + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    position, inside = _positions(first, tiles, t, T, H, W, ROWS, COLUMNS, SLOTS)
    at, in_map = position[:, None] * C + n[None, :], inside[:, None] & in_n[None, :]
    product += tl.load(residual + at, mask=in_map, other=0.0).to(tl.float32)
    stream = product.to(y.dtype.element_ty)
    rows = stream.to(x.dtype.element_ty)

    result = tl.zeros([SLOTS * ROWS * COLUMNS, BLOCK_C], tl.float32)
    for start in range(0, HIDDEN, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        in_h = h < HIDDEN
        at_fc1, at_fc2 = h[None, :] * C + n[:, None], n[None, :] * HIDDEN + h[:, None]
        fc1 = tl.load(fc1_weight + at_fc1, mask=in_h[None, :] & in_n[:, None], other=0.0)
        fc2 = tl.load(fc2_weight + at_fc2, mask=in_n[None, :] & in_h[:, None], other=0.0)
        hidden = tl.dot(rows, fc1, input_precision=PRECISION)
        if fc1_bias is not None:
            hidden += tl.load(fc1_bias + h, mask=in_h, other=0.0).to(tl.float32)[None, :]
        hidden = activate(hidden, "gelu").to(x.dtype.element_ty)
        result = tl.dot(hidden, fc2, result, input_precision=PRECISION)
    if fc2_bias is not None:
        result += tl.load(fc2_bias + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    result += stream.to(tl.float32)
    tl.store(y + at, result.to(y.dtype.element_ty), mask=in_map)


def depthwise_linear(
    x: Tensor, dw_weight: Tensor, dw_bias: Tensor | None, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    N, C = weight.shape
    y, z = x.new_empty(x.shape), x.new_empty(*x.shape[:-1], N)
    options = LINEAR.options(x.device, _class(x, dw_weight, N), **_tile(x))
    taps, sizes, constants = _window(x, dw_weight, options)
    launch(
        _linear_kernel,
        _grid(x, options),
        x,
        taps,
        _contiguous(dw_bias),
        weight.contiguous(),
        _contiguous(bias),
        y,
        z,
        *sizes,
        C=C,
        N=N,
        BLOCK_N=max(power_of_2(N), 16),
        **constants,
        **options,
    )
    return y, z


def depthwise_feed_forward(
    x: Tensor,
    residual: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
) -> Tensor:
    HIDDEN, C = fc1_weight.shape
    y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))
    default = _tile(x) | {"BLOCK_H": 64 if x.element_size() == 2 or INTERPRETED else 16}
    options = FEED_FORWARD.options(x.device, _class(x, dw_weight, HIDDEN), **default)
    taps, sizes, constants = _window(x, dw_weight, options)
    layers = (pw_weight, pw_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    launch(
        _feed_forward_kernel,
        _grid(x, options),
        x,
        residual.contiguous(),
        taps,
        _contiguous(dw_bias),
        *map(_contiguous, layers),
        y,
        *sizes,
        C=C,
        HIDDEN=HIDDEN,
        BLOCK_C=max(power_of_2(C), 16),
        **constants,
        **options,
    )
    return y


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _tiles(x: Tensor, options: dict[str, Any]) -> int:
    B, _, H, W, _ = x.shape
    return B * cdiv(H, options["ROWS"]) * cdiv(W, options["COLUMNS"])


def _grid(x: Tensor, options: dict[str, Any]) -> tuple[int]:
    return (cdiv(_tiles(x, options), options["SLOTS"]) * x.shape[1],)


def _window(
    x: Tensor, weight: Tensor, options: dict[str, Any]
) -> tuple[Tensor, tuple[int, ...], dict[str, Any]]:
    """What ``_convolve`` takes: taps, sizes and strides, constants."""
    taps, packed = _pack(weight, x.numel() >= _PACKED)
    kt, kh, kw = weight.shape[2:]
    step = vector(x)
    strides = (stride // step for stride in x.stride()[:3])
    sizes = (_tiles(x, options), *x.shape[1:4], *strides, x.stride(4))
    constants = {
        "x_w": x.stride(3),
        "VECTOR": step,
        "KT": kt,
        "KH": kh,
        "KW": kw,
        "PACKED": packed,
        "WIDE": wide(x),
        "PRECISION": precision(),
        "LEVELS": (options["ROWS"] * options["COLUMNS"]).bit_length() - 1,
    }
    return taps, sizes, constants


def _class(x: Tensor, weight: Tensor, channels: int) -> str:
    kt, kh, kw = weight.shape[2:]
    return f"{shape_class(x, (kt, kh, kw))} to {channels}"


def _tile(x: Tensor) -> dict[str, int]:
    """So many sums, taps and products as a thread has registers for; none is spilled."""
    channels = max(power_of_2(x.shape[4]), 16)
    if INTERPRETED:  # which takes its time per operation, not per lane
        return {"ROWS": 2, "COLUMNS": 2, "SLOTS": 256, "BLOCK_K": channels, "num_warps": 4}
    if x.element_size() == 4:  # products without tensor cores keep their operands in registers
        # Masked channels take registers, too: with 64 of them a few would be spilled.
        masked = channels == 64 and x.shape[4] < 64
        block = 32 if masked else min(channels, 64)
        return {"ROWS": 2, "COLUMNS": 4, "SLOTS": 4, "BLOCK_K": block, "num_warps": 8}
    columns = _fit(x.shape[3], (8, 4))
    slots = 2048 // (max(channels, 64) * columns)
    return {"ROWS": 4, "COLUMNS": columns, "SLOTS": slots, "BLOCK_K": channels, "num_warps": 8}
