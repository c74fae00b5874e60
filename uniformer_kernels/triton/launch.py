"""Start kernels, or write down what would be started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One start of a kernel: its arguments in order, then constants and compiler options."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]


_record: ContextVar[list[Launch] | None] = ContextVar("uniformer_kernels_launches", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect the launches of the ``with``; meta tensors are enough to see them."""
    launches: list[Launch] = []
    token = _record.set(launches)
    try:
        yield launches
    finally:
        _record.reset(token)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """``kernel[grid](*args, **options)`` on the device of the first argument, a tensor.

    An empty grid starts nothing; with meta tensors nothing runs.
    """
    if 0 in grid:
        return
    if (launches := _record.get()) is not None:
        launches.append(Launch(kernel, grid, tuple(map(outline, args)), options))
    first: Tensor = args[0]
    if first.is_meta:
        return
    # Fusion is asked for here, as Triton's default changes with 3.10.
    start = partial(kernel[grid], *args, enable_fp_fusion=True, **options)
    if first.is_cuda and first.get_device() != torch.cuda.current_device():
        with torch.cuda.device(first.device):
            start()
    else:
        start()


def outline(value: Any) -> Any:
    """A tensor apart from the one that is in use: autograd copies gradients somebody else holds."""
    return value.detach() if isinstance(value, Tensor) else value


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The least one that is not below ``n``."""
    return triton.next_power_of_2(n)


def wide(*tensors: Tensor | None) -> bool:
    """Whether some element of a tensor lies 2³¹ or more elements behind its first."""
    return any(
        sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) >= 2**31
        for t in tensors
        if t is not None and t.numel() > 0
    )


def precision() -> str:
    """How products of float32 are computed: as PyTorch is told for its own."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def rows(x: Tensor) -> Tensor:
    """``[..., C]`` as ``[R, C]`` with channels next to each other, a view where there is one."""
    x = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    # 32 bits suffice inside a tile if its rows are not too far apart.
    return x if x.stride(1) == 1 and x.stride(0) < 2**22 else x.contiguous()
