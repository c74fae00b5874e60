"""Narrow feed-forward networks: the hidden activations stay on the chip, in both directions."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate, slope
from .launch import cdiv, launch, power_of_2, precision, rows
from .linear import shape_class
from .partials import sum_partials
from .tuning import Tunable

_PROGRAMS = 256  # of the weights' gradients, about: each with its partial sums


def _space(*tiles: tuple[int, int, int, int]) -> list[dict[str, int]]:
    names = ("BLOCK_M", "BLOCK_H", "num_warps", "num_stages")
    return [dict(zip(names, tile, strict=True)) for tile in tiles]


FORWARD = Tunable(
    "feed_forward",
    _space(
        (64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 8, 2), (128, 64, 8, 2),
        (128, 64, 8, 3), (128, 32, 4, 2), (128, 128, 8, 2),
    ),
)  # fmt: skip
BACKWARD_INPUT = Tunable(
    "feed_forward_backward_input",
    _space((64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 8, 2), (128, 32, 8, 2), (128, 64, 8, 2)),
)
BACKWARD_WEIGHTS = Tunable(
    "feed_forward_backward_weights",
    _space((32, 64, 4, 2), (64, 64, 4, 2), (32, 64, 8, 2), (64, 64, 8, 2), (128, 64, 8, 2)),
)


@triton.jit
def _forward_kernel(
    x,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    residual,
    y,
    M,
    C: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    X_ROW: tl.constexpr,
    RESIDUAL_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    m, c, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    in_m, in_c, in_n = m < M - first, c < C, n < N
    at_x = x + first * X_ROW + (m[:, None] * X_ROW + c[None, :])
    tile = tl.load(at_x, mask=in_m[:, None] & in_c[None, :], other=0.0)
    result = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, H, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        at_fc1, at_fc2 = h[None, :] * C + c[:, None], n[None, :] * H + h[:, None]
        fc1 = tl.load(fc1_weight + at_fc1, mask=(h < H)[None, :] & in_c[:, None], other=0.0)
        fc2 = tl.load(fc2_weight + at_fc2, mask=in_n[None, :] & (h < H)[:, None], other=0.0)
        hidden = tl.dot(tile, fc1, input_precision=PRECISION)
        if fc1_bias is not None:
            hidden += tl.load(fc1_bias + h, mask=h < H, other=0.0).to(tl.float32)[None, :]
        hidden = activate(hidden, ACTIVATION).to(tile.dtype)
        result = tl.dot(hidden, fc2, result, input_precision=PRECISION)
    if fc2_bias is not None:
        result += tl.load(fc2_bias + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    inside = in_m[:, None] & in_n[None, :]
    if residual is not None:
        at_residual = residual + first * RESIDUAL_ROW + (m[:, None] * RESIDUAL_ROW + n[None, :])
        result += tl.load(at_residual, mask=inside, other=0.0).to(tl.float32)
    at = first * N + (m[:, None] * N + n[None, :])
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward_input_kernel(
    dy,
    x,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    dx,
    M,
    C: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    DY_ROW: tl.constexpr,
    X_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    m, c, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    in_m, in_c, in_n = m < M - first, c < C, n < N
    at_x = x + first * X_ROW + (m[:, None] * X_ROW + c[None, :])
    at_dy = dy + first * DY_ROW + (m[:, None] * DY_ROW + n[None, :])
    tile = tl.load(at_x, mask=in_m[:, None] & in_c[None, :], other=0.0)
    upstream = tl.load(at_dy, mask=in_m[:, None] & in_n[None, :], other=0.0).to(tile.dtype)
    result = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for start in range(0, H, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        at_fc1, at_fc2 = h[:, None] * C + c[None, :], n[:, None] * H + h[None, :]
        fc1 = tl.load(fc1_weight + at_fc1, mask=(h < H)[:, None] & in_c[None, :], other=0.0)
        fc2 = tl.load(fc2_weight + at_fc2, mask=in_n[:, None] & (h < H)[None, :], other=0.0)
        z = tl.dot(tile, tl.trans(fc1), input_precision=PRECISION)
        if fc1_bias is not None:
            z += tl.load(fc1_bias + h, mask=h < H, other=0.0).to(tl.float32)[None, :]
        dz = slope(z, ACTIVATION) * tl.dot(upstream, fc2, input_precision=PRECISION)
        result = tl.dot(dz.to(tile.dtype), fc1, result, input_precision=PRECISION)
    at = first * C + (m[:, None] * C + c[None, :])
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=in_m[:, None] & in_c[None, :])


@triton.jit
def _backward_weights_kernel(
    dy,
    x,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    partials,
    M,
    steps,
    C: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    DY_ROW: tl.constexpr,
    X_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A group of rows and some hidden channels, which stand first: no operand is turned around."""
    blocks: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    group = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    m, c, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    h = block * BLOCK_H + tl.arange(0, BLOCK_H)
    in_c, in_n, in_h = c < C, n < N, h < H
    at_fc1, at_fc2 = h[:, None] * C + c[None, :], n[None, :] * H + h[:, None]
    fc1 = tl.load(fc1_weight + at_fc1, mask=in_h[:, None] & in_c[None, :], other=0.0)
    fc2 = tl.load(fc2_weight + at_fc2, mask=in_h[:, None] & in_n[None, :], other=0.0)
    dfc1, dfc2 = tl.zeros([BLOCK_H, BLOCK_C], tl.float32), tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    dfc1_bias, dfc2_bias = tl.zeros([BLOCK_H], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    for step in range(steps):
        first = (group * steps + step) * BLOCK_M
        in_m = m < M - first
        at_x = x + first * X_ROW + (m[:, None] * X_ROW + c[None, :])
        at_dy = dy + first * DY_ROW + (m[:, None] * DY_ROW + n[None, :])
        tile = tl.load(at_x, mask=in_m[:, None] & in_c[None, :], other=0.0)
        upstream = tl.load(at_dy, mask=in_m[:, None] & in_n[None, :], other=0.0)
        dfc2_bias += tl.sum(upstream.to(tl.float32), 0)
        upstream = upstream.to(tile.dtype)
        z = tl.dot(fc1, tl.trans(tile), input_precision=PRECISION)
        if fc1_bias is not None:
            z += tl.load(fc1_bias + h, mask=in_h, other=0.0).to(tl.float32)[:, None]
        dz = slope(z, ACTIVATION) * tl.dot(fc2, tl.trans(upstream), input_precision=PRECISION)
        dfc1_bias += tl.sum(dz, 1)
        hidden = activate(z, ACTIVATION).to(tile.dtype)
        dfc1 = tl.dot(dz.to(tile.dtype), tile, dfc1, input_precision=PRECISION)
        dfc2 = tl.dot(hidden, upstream, dfc2, input_precision=PRECISION)
    partials += group * (H * C + N * H + H + N)
    tl.store(partials + at_fc1, dfc1, mask=in_h[:, None] & in_c[None, :])
    partials += H * C
    tl.store(partials + at_fc2, dfc2, mask=in_h[:, None] & in_n[None, :])
    partials += N * H
    tl.store(partials + h, dfc1_bias, mask=in_h)
    tl.store(partials + H + n, dfc2_bias, mask=n + block * BLOCK_N < N)  # the first block's


def _blocks(C: int, N: int) -> dict[str, int]:
    return {"BLOCK_C": max(power_of_2(C), 16), "BLOCK_N": max(power_of_2(N), 16)}


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    (H, C), N = fc1_weight.shape, fc2_weight.shape[0]
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    y = x.new_empty((*x.shape[:-1], N), dtype=dtype)
    x = rows(x)
    residual = None if residual is None else rows(residual)
    half = x.element_size() == 2
    options = FORWARD.options(
        x.device,
        shape_class(x, C, H, N),
        BLOCK_M=64 if half else 32,
        BLOCK_H=64 if half else 32,
        num_warps=4,
        num_stages=2,
    )
    launch(
        _forward_kernel,
        (cdiv(x.shape[0], options["BLOCK_M"]),),
        x,
        fc1_weight.contiguous(),
        None if fc1_bias is None else fc1_bias.contiguous(),
        fc2_weight.contiguous(),
        None if fc2_bias is None else fc2_bias.contiguous(),
        residual,
        y,
        x.shape[0],
        C=C,
        H=H,
        N=N,
        X_ROW=x.stride(0),
        RESIDUAL_ROW=0 if residual is None else residual.stride(0),
        ACTIVATION=activation,
        PRECISION=precision(),
        **_blocks(C, N),
        **options,
    )
    return y


def feed_forward_backward(
    dy: Tensor,
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    activation: str,
    want_input: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (H, C), N = fc1_weight.shape, fc2_weight.shape[0]
    dx = x.new_empty(x.shape if want_input else 0)
    gradients = [
        x.new_empty(shape if want_weights else 0) for shape in ((H, C), (N, H), (H,), (N,))
    ]
    dy, x = rows(dy), rows(x)
    tensors = (
        dy,
        x,
        fc1_weight.contiguous(),
        None if fc1_bias is None else fc1_bias.contiguous(),
        fc2_weight.contiguous(),
    )
    constants = {
        "C": C,
        "H": H,
        "N": N,
        "DY_ROW": dy.stride(0),
        "X_ROW": x.stride(0),
        "ACTIVATION": activation,
        "PRECISION": precision(),
    } | _blocks(C, N)
    kind, half, M = shape_class(x, C, H, N), x.element_size() == 2, x.shape[0]
    ieee = not half and precision() == "ieee"  # without tensor cores
    if want_input:
        options = BACKWARD_INPUT.options(
            x.device,
            kind,
            BLOCK_M=32 if ieee else 64,
            BLOCK_H=32,
            num_warps=4 if half or ieee else 8,
            num_stages=2,
        )
        grid = (cdiv(M, options["BLOCK_M"]),)
        launch(_backward_input_kernel, grid, *tensors, dx, M, **constants, **options)
    if want_weights:
        large = max(C, N) > 64
        options = BACKWARD_WEIGHTS.options(
            x.device,
            kind,
            BLOCK_M=32 if half or ieee else 64,
            BLOCK_H=64 if half else 32,
            num_warps=4 if half and not large else 8,
            num_stages=1 if half and not large else 2,
        )
        block_m, blocks = options["BLOCK_M"], cdiv(H, options["BLOCK_H"])
        steps = cdiv(cdiv(M, block_m), max(_PROGRAMS // blocks, 1))
        groups = cdiv(M, block_m * max(steps, 1))
        partials = x.new_empty(groups, H * C + N * H + H + N, dtype=torch.float32)
        grid = (groups * blocks,)
        launch(_backward_weights_kernel, grid, *tensors, partials, M, steps, **constants, **options)
        sum_partials(partials, gradients)
    dfc1, dfc2, dfc1_bias, dfc2_bias = gradients
    return dx, dfc1, dfc1_bias, dfc2, dfc2_bias
