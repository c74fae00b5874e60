"""The patch stem: a matrix product that finds its patches by address, and LayerNorm behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, launch, power_of_2, precision, wide
from .layer_norm import layer_norm
from .linear import shape_class
from .tuning import Tunable

_MAX_FUSED = 256  # output channels that one program holds, to normalise them

PATCH_EMBED = Tunable(
    "patch_embed",
    [
        dict(zip(("BLOCK_M", "BLOCK_K", "num_warps", "num_stages"), tile, strict=True))
        for tile in (
            (32, 64, 4, 3), (64, 32, 4, 4), (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 8, 3),
            (128, 32, 8, 3), (128, 64, 8, 3),
        )
    ],
)  # fmt: skip


@triton.jit
def _patch_embed_kernel(
    x,
    weight,
    bias,
    norm_weight,
    norm_bias,
    out,
    y,
    mean,
    rstd,
    M,
    T,
    H,
    W,
    OT,
    OH,
    OW,
    stride_b,
    stride_t,
    stride_h,
    stride_w,
    stride_c,
    eps,
    C: tl.constexpr,
    N: tl.constexpr,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ST: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PT: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows of patches times the weight, whose columns go as ``x`` lies in memory."""
    TAPS: tl.constexpr = KT * KH * KW
    blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    if not WIDE:
        row = row.to(tl.int32)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_row, in_n = row < M, n < N
    # What the compiler cannot see: the wide strides are multiples of UNIT, and ...
    if CHANNELS_LAST:
        stride_w *= UNIT
    else:
        stride_c *= UNIT
    stride_b, stride_t, stride_h = stride_b * UNIT, stride_t * UNIT, stride_h * UNIT
    w = (row % OW) * SW - PW
    h = (row // OW % OH) * SH - PH
    t = (row // (OW * OH) % OT) * ST - PT
    corner = row // (OW * OH * OT) * stride_b + t * stride_t + h * stride_h + w * stride_w
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, C * TAPS, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_k = k < C * TAPS
        if CHANNELS_LAST:
            tap, c = k // C, k % C
        else:
            tap, c = k % TAPS, k // TAPS
        # ... patches come in runs of VECTOR neighbours.
        kt = tl.max_constancy(tap // (KW * KH), VECTOR)
        kh, kw = tl.max_constancy(tap // KW % KH, VECTOR), tap % KW
        inside = in_row[:, None] & in_k[None, :]
        if PT > 0:
            at_t = t[:, None] + kt[None, :]
            inside &= (at_t >= 0) & (at_t < T)
        if PH > 0:
            at_h = h[:, None] + kh[None, :]
            inside &= (at_h >= 0) & (at_h < H)
        if PW > 0:
            at_w = w[:, None] + kw[None, :]
            inside &= (at_w >= 0) & (at_w < W)
        if WIDE:
            kt, kh, kw, c = kt.to(tl.int64), kh.to(tl.int64), kw.to(tl.int64), c.to(tl.int64)
        along = kt * stride_t + kh * stride_h + kw * stride_w + c * stride_c
        along = tl.max_contiguous(tl.multiple_of(along, VECTOR), VECTOR)
        left = tl.load(x + (corner[:, None] + along[None, :]), mask=inside, other=0.0)
        at_weight = weight + (n[None, :] * (C * TAPS) + k[:, None])
        right = tl.load(at_weight, mask=in_n[None, :] & in_k[:, None], other=0.0)
        product = tl.dot(left, right, product, input_precision=PRECISION)
    if bias is not None:
        product += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    at, inside = row[:, None] * N + n[None, :], in_row[:, None] & in_n[None, :]
    if NORM:
        if y is not None:
            tl.store(y + at, product.to(y.dtype.element_ty), mask=inside)
        centre = tl.sum(product, 1) / N
        product = tl.where(in_n[None, :], product - centre[:, None], 0.0)
        inverse = 1 / tl.sqrt(tl.sum(product * product, 1) / N + eps)
        product *= inverse[:, None]
        product *= tl.load(norm_weight + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
        if norm_bias is not None:
            product += tl.load(norm_bias + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
        if y is not None:
            tl.store(mean + row, centre, mask=in_row)
            tl.store(rstd + row, inverse, mask=in_row)
    tl.store(out + at, product.to(out.dtype.element_ty), mask=inside)


def patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    eps: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    N, kernel = weight.shape[0], weight.shape[2:]
    sizes = [
        (size + 2 * pad - k) // step + 1
        for size, k, step, pad in zip(x.shape[1:4], kernel, stride, padding, strict=True)
    ]
    out = x.new_empty(x.shape[0], *sizes, N)
    M, none = out.shape[:-1].numel(), (x.new_empty(0), *_statistics(x, 0))
    if norm_weight is None:
        _product(x, weight, bias, None, None, stride, padding, eps, out, None)
        return out, *none
    if N > _MAX_FUSED:
        _product(x, weight, bias, None, None, stride, padding, eps, out, None)
        y, (out, mean, rstd) = out, layer_norm(out, norm_weight, norm_bias, eps)
        return (out, y, mean, rstd) if save else (out, *none)
    saved = (torch.empty_like(out), *_statistics(x, M)) if save else None
    _product(x, weight, bias, norm_weight, norm_bias, stride, padding, eps, out, saved)
    return out, *(saved or none)


def _statistics(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(rows, dtype=torch.float32), x.new_empty(rows, dtype=torch.float32)


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    eps: float,
    out: Tensor,
    saved: tuple[Tensor, Tensor, Tensor] | None,
) -> None:
    (N, C, *kernel), M = weight.shape, out.shape[:-1].numel()
    channels_last = x.stride(4) <= x.stride(3)
    norm = norm_weight is not None
    options = PATCH_EMBED.options(
        x.device, shape_class(x, weight[0].numel(), N), **_default(x, N, norm)
    )
    block_n = power_of_2(N) if norm else min(power_of_2(N), 128)
    options["BLOCK_N"] = max(block_n, 16)
    unit, strides = _strides(x, channels_last)
    neighbours = x.stride(4 if channels_last else 3) == 1
    run = C if channels_last else kernel[2]
    launch(
        _patch_embed_kernel,
        (cdiv(M, options["BLOCK_M"]) * cdiv(N, options["BLOCK_N"]),),
        x,
        (weight.movedim(1, -1) if channels_last else weight).contiguous(),
        *(t if t is None else t.contiguous() for t in (bias, norm_weight, norm_bias)),
        out,
        *(saved or (None, None, None)),
        M,
        *x.shape[1:4],
        *out.shape[1:4],
        *strides,
        eps,
        C=C,
        N=N,
        **dict(zip(("KT", "KH", "KW"), kernel, strict=True)),
        **dict(zip(("ST", "SH", "SW"), stride, strict=True)),
        **dict(zip(("PT", "PH", "PW"), padding, strict=True)),
        CHANNELS_LAST=channels_last,
        UNIT=unit,
        VECTOR=math.gcd(unit, run) if neighbours else 1,
        WIDE=wide(x, out),
        NORM=norm,
        PRECISION=precision(),
        **options,
    )


def _default(x: Tensor, N: int, norm: bool) -> dict[str, Any]:
    if x.element_size() == 4:
        return {"BLOCK_M": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2}
    warps = 8 if norm and N > 128 else 4
    return {"BLOCK_M": 64, "BLOCK_K": 64, "num_warps": warps, "num_stages": 3}


def _strides(x: Tensor, channels_last: bool) -> tuple[int, list[int]]:
    """A common factor of all strides but the narrowest axis's, and the others divided by it."""
    narrowest = 4 if channels_last else 3
    unit = math.gcd(16, *(s for axis, s in enumerate(x.stride()) if axis != narrowest))
    return unit, [s if axis == narrowest else s // unit for axis, s in enumerate(x.stride())]
