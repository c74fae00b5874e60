"""What the GPU can do at most, measured: the shares in the other stages refer to this."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import torch

from uniformer_kernels.bench.graphs import compare

from .rows import OURS, row

MULTIPLY_ADDS = "multiply-adds in float32"  # of no measurement: lanes by clock


def run() -> Iterator[dict[str, Any]]:
    yield _copy(2**29)
    for dtype in (torch.bfloat16, torch.float32):
        yield _matmul(8192, dtype)
    yield {"what": MULTIPLY_ADDS, "flop_per_s": 2 * lanes() * full_speed()}


def lanes() -> int:
    """Float32 multiply-adds the GPU's multiprocessors start in a clock, by their data sheets."""
    gpu = torch.cuda.get_device_properties(0)
    return (64 if (gpu.major, gpu.minor) == (8, 0) else 128) * gpu.multi_processor_count


def full_speed() -> float:
    """The clock of the processors at its fastest, in Hz."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    megahertz, *_ = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    return float(megahertz) * 1e6


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
