"""Matrix products whose neighbours are fused: with the product where memory is the bound."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate, slope
from .launch import cdiv, launch, power_of_2, precision, rows
from .partials import sum_partials
from .tuning import Tunable

_PROGRAMS = 1024  # of the backward, at most and about

LINEAR = Tunable(
    "linear",
    [
        {"gemm": False},
        *(
            {"gemm": True, "BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}
            for m, n, warps, stages in (
                (64, 64, 4, 2),
                (64, 128, 4, 3),
                (128, 64, 4, 2),
                (128, 64, 4, 3),
                (128, 128, 8, 2),
                (128, 128, 8, 3),
                (64, 256, 8, 2),
                (128, 32, 4, 3),
            )
        ),
    ],
)


@triton.jit
def _linear_kernel(
    x,
    weight,
    bias,
    residual,
    y,
    z,
    M,
    K: tl.constexpr,
    N: tl.constexpr,
    X_ROW: tl.constexpr,
    WEIGHT_ROW: tl.constexpr,
    RESIDUAL_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Neighbouring programs share rows of ``x``, which are then read once."""
    blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    first = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = (m < M - first)[:, None], (n < N)[None, :]
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at_x = x + first * X_ROW + (m[:, None] * X_ROW + k[None, :])
        at_weight = weight + (n[None, :] * WEIGHT_ROW + k[:, None])
        left = tl.load(at_x, mask=in_m & (k < K)[None, :], other=0.0)
        right = tl.load(at_weight, mask=in_n & (k < K)[:, None], other=0.0)
        product = tl.dot(left, right, product, input_precision=PRECISION)
    if bias is not None:
        product += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    inside, at = in_m & in_n, first * N + (m[:, None] * N + n[None, :])
    if z is not None:
        tl.store(z + at, product.to(z.dtype.element_ty), mask=inside)
    product = activate(product, ACTIVATION)
    if residual is not None:
        at_residual = residual + first * RESIDUAL_ROW + (m[:, None] * RESIDUAL_ROW + n[None, :])
        product += tl.load(at_residual, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, product.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _epilogue_kernel(z, residual, y, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = activate(tl.load(z + at, mask=at < size, other=0.0).to(tl.float32), ACTIVATION)
    if residual is not None:
        value += tl.load(residual + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < size)


@triton.jit
def _activation_backward_kernel(
    dy,
    z,
    dz,
    hidden,
    partials,
    M,
    steps,
    N: tl.constexpr,
    DY_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A group of rows of some columns, one block of rows after another."""
    blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    group = (tl.program_id(0) // blocks).to(tl.int64)
    m = tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    found = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(steps):
        first = (group * steps + step) * BLOCK_M
        inside = (m < M - first)[:, None] & (n < N)[None, :]
        at = first * N + (m[:, None] * N + n[None, :])
        at_dy = dy + first * DY_ROW + (m[:, None] * DY_ROW + n[None, :])
        value = tl.load(at_dy, mask=inside, other=0.0).to(tl.float32)
        if z is not None:
            before = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
            value *= slope(before, ACTIVATION)
            if hidden is not None:
                after = activate(before, ACTIVATION)
                tl.store(hidden + at, after.to(hidden.dtype.element_ty), mask=inside)
        if dz is not None:
            tl.store(dz + at, value.to(dz.dtype.element_ty), mask=inside)
        found += value
    if partials is not None:
        tl.store(partials + group * N + n, tl.sum(found, 0), mask=n < N)


def shape_class(x: Tensor, *sizes: int) -> str:
    """Sizes and how products of ``x``'s dtype are computed."""
    kind = "16-bit" if x.element_size() == 2 else precision()
    return f"{'-'.join(map(str, sizes))} {kind}"


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    N, K = weight.shape
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    shape, x = (*x.shape[:-1], N), rows(x)
    save = save and activation != ""
    options = LINEAR.options(
        x.device,
        shape_class(x, K, N),
        **_default(x, K, N, activation != "" or residual is not None),
    )
    if options.pop("gemm"):
        y = x.new_empty(shape, dtype=dtype)
        z = x.new_empty(shape if save else 0)
        _fused(x, weight, bias, activation, residual, y, z if save else None, options)
        return y, z
    product = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
    # Not a view: autograd lets nobody write to those a Function returns.
    product = torch.ops.aten._unsafe_view(product, shape)
    if activation == "" and residual is None:
        return product, x.new_empty(0)
    y = product if not save and dtype == x.dtype else torch.empty_like(product, dtype=dtype)
    _epilogue(product, activation, residual, y)
    return y, product if save else x.new_empty(0)


def _default(x: Tensor, K: int, N: int, neighbours: bool) -> dict[str, Any]:
    """cuBLAS is at home where the tensor cores are the bound, and wherever there are none.

    A pass for the neighbours, which it leaves, moves as much as a product of few channels: an
    estimate from an H100's bandwidth and peak, until its products are measured.
    """
    fast = x.element_size() == 2 or precision() != "ieee"
    tile = {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}
    if K <= 128:
        return {"gemm": fast and (neighbours or N <= 512), **tile}
    tile |= {"BLOCK_N": 128, "num_warps": 8, "num_stages": 3} if N > 512 else {"num_stages": 3}
    return {"gemm": fast and neighbours and K <= 512, **tile}


def _fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    y: Tensor,
    z: Tensor | None,
    options: dict[str, Any],
) -> None:
    (N, K), M = weight.shape, x.shape[0]
    weight = rows(weight)
    residual = None if residual is None else rows(residual)
    launch(
        _linear_kernel,
        (cdiv(M, options["BLOCK_M"]) * cdiv(N, options["BLOCK_N"]),),
        x,
        weight,
        None if bias is None else bias.contiguous(),
        residual,
        y,
        z,
        M,
        K=K,
        N=N,
        X_ROW=x.stride(0),
        WEIGHT_ROW=weight.stride(0),
        RESIDUAL_ROW=0 if residual is None else residual.stride(0),
        ACTIVATION=activation,
        PRECISION=precision(),
        BLOCK_K=min(max(power_of_2(K), 16), 64 if x.element_size() == 2 else 32),
        **options,
    )


def _epilogue(z: Tensor, activation: str, residual: Tensor | None, y: Tensor) -> None:
    block = 2048
    launch(
        _epilogue_kernel,
        (cdiv(z.numel(), block),),
        z,
        None if residual is None else residual.contiguous(),
        y,
        z.numel(),
        ACTIVATION=activation,
        BLOCK=block,
        num_warps=4,
    )


def activation_backward(
    dy: Tensor,
    z: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    want_input: bool,
    want_hidden: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    N, M = dy.shape[-1], dy.shape[:-1].numel()
    dz = dy.new_empty(dy.shape if want_input else 0, dtype=dtype)
    hidden = dy.new_empty(dy.shape if want_hidden else 0, dtype=dtype)
    dbias = dy.new_empty(N if want_bias else 0, dtype=dtype)
    dy = rows(dy)
    block_n = min(max(power_of_2(N), 16), 128)
    block_m, blocks = 2048 // block_n, cdiv(N, block_n)
    steps = cdiv(cdiv(M, block_m), max(_PROGRAMS // blocks, 1))
    groups = cdiv(M, block_m * max(steps, 1))
    partials = dy.new_empty(groups, N, dtype=torch.float32) if want_bias else None
    launch(
        _activation_backward_kernel,
        (groups * blocks,),
        dy,
        z,
        dz if want_input else None,
        hidden if want_hidden else None,
        partials,
        M,
        steps,
        N=N,
        DY_ROW=dy.stride(0),
        ACTIVATION=activation,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=4,
    )
    if want_bias:
        sum_partials(partials, [dbias])
    return dz, hidden, dbias
