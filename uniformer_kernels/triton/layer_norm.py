"""LayerNorm over the last axis, a row being in one program's registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, launch, power_of_2, rows
from .partials import sum_partials
from .tuning import Tunable

_GROUPS = 512  # programs of the backward, each with its partial sums

_SPACE = [
    {"tile": tile, "num_warps": warps}
    for tile, warps in ((1024, 2), (1024, 4), (2048, 4), (2048, 8), (4096, 4), (4096, 8))
]
FORWARD = Tunable("layer_norm", _SPACE)
BACKWARD = Tunable("layer_norm_backward", _SPACE)


@triton.jit
def _forward_kernel(
    x,
    weight,
    bias,
    y,
    mean,
    rstd,
    R,
    eps,
    C: tl.constexpr,
    X_ROW: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    row, c = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    inside = (row < R - first)[:, None] & (c < C)[None, :]
    value = tl.load(x + first * X_ROW + (row[:, None] * X_ROW + c[None, :]), mask=inside, other=0.0)
    value = value.to(tl.float32)
    centre = tl.sum(value, 1) / C
    value = tl.where((c < C)[None, :], value - centre[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(value * value, 1) / C + eps)
    value *= inverse[:, None]
    if weight is not None:
        value *= tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        value += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    at = first * C + (row[:, None] * C + c[None, :])
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)
    tl.store(mean + first + row, centre, mask=row < R - first)
    tl.store(rstd + first + row, inverse, mask=row < R - first)


@triton.jit
def _backward_kernel(
    dy,
    x,
    weight,
    bias,
    mean,
    rstd,
    dx,
    y,
    partials,
    R,
    steps,
    C: tl.constexpr,
    DY_ROW: tl.constexpr,
    X_ROW: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A group of rows: their ``dx``, what they were normalised to, and their part of the
    parameters' gradients."""
    group = tl.program_id(0).to(tl.int64)
    row, c = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    scale = 1.0
    if weight is not None:
        scale = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    offset = 0.0
    if bias is not None:
        offset = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    dbias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(steps):
        first = (group * steps + step) * BLOCK_R
        in_rows = row < R - first
        inside = in_rows[:, None] & (c < C)[None, :]
        at_x = first * X_ROW + (row[:, None] * X_ROW + c[None, :])
        at_dy = first * DY_ROW + (row[:, None] * DY_ROW + c[None, :])
        value = tl.load(x + at_x, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(dy + at_dy, mask=inside, other=0.0).to(tl.float32)
        centre = tl.load(mean + first + row, mask=in_rows, other=0.0)
        inverse = tl.load(rstd + first + row, mask=in_rows, other=0.0)
        value = (value - centre[:, None]) * inverse[:, None]
        value = tl.where((c < C)[None, :], value, 0.0)
        at = first * C + (row[:, None] * C + c[None, :])
        if y is not None:
            tl.store(y + at, (value * scale + offset).to(y.dtype.element_ty), mask=inside)
        if partials is not None:
            dweight += slope * value
            dbias += slope
        if dx is not None:
            slope *= scale
            along = tl.sum(slope * value, 1) / C
            slope -= value * along[:, None] + (tl.sum(slope, 1) / C)[:, None]
            slope *= inverse[:, None]
            tl.store(dx + at, slope.to(dx.dtype.element_ty), mask=inside)
    if partials is not None:
        partials += group * (2 * C)
        tl.store(partials + c, tl.sum(dweight, 0), mask=c < C)
        tl.store(partials + C + c, tl.sum(dbias, 0), mask=c < C)


def _shape_class(x: Tensor) -> str:
    return f"C{x.shape[-1]} {8 * x.element_size()}-bit"


def _default(x: Tensor) -> dict[str, int]:
    return {"tile": 2048, "num_warps": 8 if x.shape[-1] > 2048 else 4}


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    x, C = rows(x), x.shape[-1]
    R, block_c = x.shape[0], power_of_2(C)
    mean, rstd = (x.new_empty(R, dtype=torch.float32) for _ in range(2))
    options = FORWARD.options(x.device, _shape_class(x), **_default(x))
    block_r = max(options.pop("tile") // block_c, 1)
    launch(
        _forward_kernel,
        (cdiv(R, block_r),),
        x,
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        y,
        mean,
        rstd,
        R,
        eps,
        C=C,
        X_ROW=x.stride(0),
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        **options,
    )
    return y, mean, rstd


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    want_input: bool,
    want_weight: bool,
    want_output: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, y = (x.new_empty(x.shape if want else 0) for want in (want_input, want_output))
    dy, x, C = rows(dy), rows(x), x.shape[-1]
    parameter = x if weight is None else weight
    dweight, dbias = (parameter.new_empty(C if want_weight else 0) for _ in range(2))
    options = BACKWARD.options(x.device, _shape_class(x), **_default(x))
    R, block_c = x.shape[0], power_of_2(C)
    block_r = max(options.pop("tile") // block_c, 1)
    steps = cdiv(cdiv(R, block_r), _GROUPS)
    groups = cdiv(R, block_r * max(steps, 1))
    partials = x.new_empty(groups, 2 * C, dtype=torch.float32) if want_weight else None
    launch(
        _backward_kernel,
        (groups,),
        dy,
        x,
        None if weight is None else weight.contiguous(),
        None if bias is None or not want_output else bias.contiguous(),
        mean,
        rstd,
        dx if want_input else None,
        y if want_output else None,
        partials,
        R,
        steps,
        C=C,
        DY_ROW=dy.stride(0),
        X_ROW=x.stride(0),
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        **options,
    )
    if want_weight:
        sum_partials(partials, [dweight, dbias])
    return dx, dweight, dbias, y
