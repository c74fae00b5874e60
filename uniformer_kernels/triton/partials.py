"""Sums of what several programs found, in an order that the shape alone decides."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, launch

_BLOCK_G, _BLOCK_N = 32, 64


@triton.jit
def _sum_kernel(
    partials,
    a,
    b,
    c,
    d,
    groups,
    A,
    B,
    C,
    D,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = A + B + C + D
    found = tl.zeros([BLOCK_G, BLOCK_N], tl.float32)
    for first in range(0, groups, BLOCK_G):
        group = first + tl.arange(0, BLOCK_G)
        at = group.to(tl.int64)[:, None] * total + n[None, :]
        inside = (group < groups)[:, None] & (n < total)[None, :]
        found += tl.load(partials + at, mask=inside, other=0.0)
    found = tl.sum(found, 0)
    tl.store(a + n, found.to(a.dtype.element_ty), mask=n < A)
    n -= A
    if b is not None:
        tl.store(b + n, found.to(b.dtype.element_ty), mask=(n >= 0) & (n < B))
    n -= B
    if c is not None:
        tl.store(c + n, found.to(c.dtype.element_ty), mask=(n >= 0) & (n < C))
    n -= C
    if d is not None:
        tl.store(d + n, found.to(d.dtype.element_ty), mask=(n >= 0) & (n < D))


def sum_partials(partials: Tensor, results: Sequence[Tensor]) -> None:
    """Add ``[groups, total]`` over the groups, into up to four results one behind another."""
    sizes = [result.numel() for result in results]
    rest = 4 - len(results)
    launch(
        _sum_kernel,
        (cdiv(sum(sizes), _BLOCK_N),),
        partials,
        *results,
        *[None] * rest,
        partials.shape[0],
        *sizes,
        *[0] * rest,
        BLOCK_G=_BLOCK_G,
        BLOCK_N=_BLOCK_N,
        num_warps=4,
    )
