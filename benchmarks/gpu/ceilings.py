"""What the GPU can do at most, measured: the shares in the other stages refer to this."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from uniformer_kernels.bench.graphs import compare

from .rows import OURS, row


def run() -> Iterator[dict[str, Any]]:
    yield _copy(2**29)
    for dtype in (torch.bfloat16, torch.float32):
        yield _matmul(8192, dtype)


def _copy(elements: int) -> dict[str, Any]:
    source = torch.randn(elements, device="cuda")
    target = torch.empty_like(source)

    def make() -> Callable[[], object]:
        return lambda: target.copy_(source)

    return row("copy", compare({OURS: make}, graph=False), bytes_=2 * source.nbytes)


def _matmul(n: int, dtype: torch.dtype) -> dict[str, Any]:
    a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))

    def make() -> Callable[[], object]:
        return lambda: a @ b

    name = f"matmul {str(dtype).removeprefix('torch.')}"
    return row(name, compare({OURS: make}, graph=False), flops=2 * n**3)
