"""Batch statistics, and batch normalisation as a part of the linear layer behind it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, launch, power_of_2
from .partials import sum_partials
from .tuning import Tunable

_GROUPS = 512  # programs that sum, each with its partial sums

_SPACE = [
    {"tile": tile, "num_warps": warps}
    for tile, warps in ((2048, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8))
]
MOMENTS = Tunable("moments", _SPACE)
MOMENTS_BACKWARD = Tunable("moments_backward", _SPACE)
_BLOCK_C = 128  # channels at most, so that rows are long enough to be read as a whole

_FORWARD = {"BLOCK_R": 8, "BLOCK_C": 128, "num_warps": 4}
_BACKWARD = {"BLOCK_R": 128, "BLOCK_C": 16, "num_warps": 8}


@triton.jit
def _moments_kernel(
    x, shift, partials, N, steps, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """A group of rows: its part of the sums."""
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    group = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.arange(0, BLOCK_R)
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    less = 0.0
    if shift is not None:
        less = tl.load(shift + c, mask=c < C, other=0.0)[None, :]
    sums = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(steps):
        first = (group * steps + step) * BLOCK_R
        inside = (row < N - first)[:, None] & (c < C)[None, :]
        value = tl.load(x + first * C + (row[:, None] * C + c[None, :]), mask=inside, other=0.0)
        value = tl.where(inside, value.to(tl.float32) - less, 0.0)
        sums += value
        squares += value * value
    partials += group * (2 * C)
    tl.store(partials + c, tl.sum(sums, 0), mask=c < C)
    tl.store(partials + C + c, tl.sum(squares, 0), mask=c < C)


@triton.jit
def _moments_backward_kernel(
    x, dy, shift, dmoments, dx, N, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    first = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_R
    row = tl.arange(0, BLOCK_R)
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < N - first)[:, None] & (c < C)[None, :]
    at = first * C + (row[:, None] * C + c[None, :])
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if shift is not None:
        value -= tl.load(shift + c, mask=c < C, other=0.0)[None, :]
    slope = 2 * tl.load(dmoments + C + c, mask=c < C, other=0.0)
    found = tl.load(dmoments + c, mask=c < C, other=0.0)[None, :] + slope[None, :] * value
    if dy is not None:
        found += tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + at, found.to(dx.dtype.element_ty), mask=inside)


def moments(x: Tensor, shift: Tensor | None) -> Tensor:
    """See ``csrc/library.cpp``."""
    N, C = x.shape
    result = x.new_empty(2, C, dtype=torch.float32)
    options = MOMENTS.options(x.device, _shape_class(x), tile=4096, num_warps=4)
    block_c, blocks = _channels(C)
    block_r = options.pop("tile") // block_c
    steps = cdiv(cdiv(N, block_r), max(_GROUPS // max(blocks, 1), 1))
    groups = cdiv(N, block_r * max(steps, 1))
    partials = x.new_empty(groups, 2 * C, dtype=torch.float32)
    launch(
        _moments_kernel,
        (groups * blocks,),
        *_packed(x, shift),
        partials,
        N,
        steps,
        C=C,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        **options,
    )
    sum_partials(partials, [result])
    return result


def moments_backward(
    dy: Tensor | None, x: Tensor, shift: Tensor | None, dmoments: Tensor
) -> Tensor:
    """See ``csrc/library.cpp``."""
    N, C = x.shape
    dx = x.new_empty(N, C)
    options = MOMENTS_BACKWARD.options(x.device, _shape_class(x), tile=4096, num_warps=4)
    block_c, blocks = _channels(C)
    block_r = options.pop("tile") // block_c
    launch(
        _moments_backward_kernel,
        (cdiv(N, block_r) * blocks,),
        *_packed(x, dy, shift, dmoments),
        dx,
        N,
        C=C,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        **options,
    )
    return dx


def _channels(C: int) -> tuple[int, int]:
    """How many channels a program takes, and how many programs take all."""
    block = min(power_of_2(max(C, 1)), _BLOCK_C)
    return block, cdiv(C, block)


def _shape_class(x: Tensor) -> str:
    return f"C{x.shape[1]} {8 * x.element_size()}-bit"


@triton.jit
def _load(pointer, c, C, otherwise: tl.constexpr):
    """A number per channel in float32; ``otherwise`` where there is no tensor."""
    if pointer is None:
        found = tl.full(c.shape, otherwise, tl.float32)
    else:
        found = tl.load(pointer + c, mask=c < C, other=0.0).to(tl.float32)
    return found


@triton.jit
def _variance(statistics, count, c, C):
    """The variance, which rounding may make negative, and the mean's distance from the shift."""
    variance = _load(statistics, c, C, 0.0)
    distance = tl.zeros(c.shape, tl.float32)
    if count is not None:
        distance = variance / count
        variance = _load(statistics + C, c, C, 0.0) / count - distance * distance
    return variance, distance


@triton.jit
def _fold_kernel(
    weight,
    bias,
    mean,
    statistics,
    norm_weight,
    norm_bias,
    folded,
    folded_bias,
    found,
    R,
    C,
    count,
    eps,
    w_r,
    w_c,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Rows of the weight; the first program also says what the statistics are."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (r < R)[:, None] & (c < C)[None, :]
        variance, distance = _variance(statistics, count, c, C)
        variance = tl.where(variance < 0, 0.0, variance)
        centre = _load(mean, c, C, 0.0) + distance
        if count is not None:
            told = c < tl.where(tl.program_id(0) == 0, C, 0)
            tl.store(found + c, centre, mask=told)
            tl.store(found + C + c, variance * (count / (count - 1)), mask=told)
        scale = _load(norm_weight, c, C, 1.0) / tl.sqrt(variance + eps)
        offset = _load(norm_bias, c, C, 0.0) - centre * scale
        at = r[:, None] * w_r + c.to(tl.int64)[None, :] * w_c
        value = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        total += tl.where(inside, value * offset[None, :], 0.0)
        value = (value * scale[None, :]).to(folded.dtype.element_ty)
        tl.store(folded + r[:, None] * C + c[None, :], value, mask=inside)
    total = tl.sum(total, 1) + _load(bias, r, R, 0.0)
    tl.store(folded_bias + r, total.to(folded_bias.dtype.element_ty), mask=r < R)


@triton.jit
def _fold_backward_kernel(
    weight,
    dfolded,
    dfolded_bias,
    mean,
    statistics,
    norm_weight,
    norm_bias,
    dweight,
    dstatistics,
    dnorm_weight,
    dnorm_bias,
    R,
    C,
    count,
    eps,
    w_r,
    w_c,
    d_r,
    d_c,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Columns of the weight, from the first output to the last."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    variance, distance = _variance(statistics, count, c, C)
    inverse = 1 / tl.sqrt(tl.where(variance < 0, 0.0, variance) + eps)
    centre, gamma = _load(mean, c, C, 0.0), _load(norm_weight, c, C, 1.0)
    offset = _load(norm_bias, c, C, 0.0) - centre * gamma * inverse
    dscale = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    doffset = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, R, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        inside = (r < R)[:, None] & (c < C)[None, :]
        wide_r, wide_c = r.to(tl.int64)[:, None], c.to(tl.int64)[None, :]
        at = wide_r * w_r + wide_c * w_c
        value = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        if dfolded is not None:
            at = wide_r * d_r + wide_c * d_c
            slope = tl.load(dfolded + at, mask=inside, other=0.0).to(tl.float32)
            dscale += slope * value
            gradient += slope * (gamma * inverse)[None, :]
        if dfolded_bias is not None:
            slope = _load(dfolded_bias, r, R, 0.0)[:, None]
            doffset += slope * value
            gradient += slope * offset[None, :]
        tl.store(dweight + wide_r * C + wide_c, gradient.to(dweight.dtype.element_ty), mask=inside)
    doffset = tl.sum(doffset, 0)
    dscale = tl.sum(dscale, 0) - centre * doffset
    if dnorm_weight is not None:
        found = (dscale * inverse).to(dnorm_weight.dtype.element_ty)
        tl.store(dnorm_weight + c, found, mask=c < C)
    if dnorm_bias is not None:
        tl.store(dnorm_bias + c, doffset.to(dnorm_bias.dtype.element_ty), mask=c < C)
    found = -0.5 * dscale * gamma * inverse * inverse * inverse
    if count is not None:
        found = tl.where(variance >= 0, found / count, 0.0)
        tl.store(dstatistics + C + c, found.to(dstatistics.dtype.element_ty), mask=c < C)
        found = -gamma * inverse * doffset / count - 2 * distance * found
    tl.store(dstatistics + c, found.to(dstatistics.dtype.element_ty), mask=c < C)


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None,
    statistics: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    count: int | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``library.py``."""
    R, C = weight.shape
    found = statistics.new_empty(0 if count is None else (2, C), dtype=torch.float32)
    folded, folded_bias = weight.new_empty(R, C), weight.new_empty(R)
    launch(
        _fold_kernel,
        (max(cdiv(R, _FORWARD["BLOCK_R"]), 1),),
        weight,
        *_packed(bias, mean, statistics, norm_weight, norm_bias),
        folded,
        folded_bias,
        found,
        R,
        C,
        count,
        eps,
        *weight.stride(),
        **_FORWARD,
    )
    return folded, folded_bias, found


def fold_batch_norm_backward(
    dfolded: Tensor | None,
    dfolded_bias: Tensor | None,
    weight: Tensor,
    mean: Tensor | None,
    statistics: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    count: int | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``library.py``."""
    R, C = weight.shape
    dweight, dstatistics = weight.new_empty(R, C), statistics.new_empty(statistics.shape)
    dnorm_weight, dnorm_bias = (
        weight.new_empty(0) if t is None else t.new_empty(C) for t in (norm_weight, norm_bias)
    )
    launch(
        _fold_backward_kernel,
        (cdiv(C, _BACKWARD["BLOCK_C"]),),
        weight,
        dfolded,
        *_packed(dfolded_bias, mean, statistics, norm_weight, norm_bias),
        dweight,
        dstatistics,
        None if norm_weight is None else dnorm_weight,
        None if norm_bias is None else dnorm_bias,
        R,
        C,
        count,
        eps,
        *weight.stride(),
        *((0, 0) if dfolded is None else dfolded.stride()),
        **_BACKWARD,
    )
    return dweight, dstatistics, dnorm_weight, dnorm_bias


def _packed(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]
