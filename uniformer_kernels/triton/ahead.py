"""Compile kernels before they are started, on all processors, into Triton's cache on disk.

Triton compiles a kernel when it is first started, one after another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from typing import Any

from torch import Tensor
from triton.errors import TritonError

from .launch import Launch


def compile_all(launches: Callable[[], Iterable[Launch]]) -> int:
    """Compile the kernels that these launches need; how many could be.

    Args:
        launches: of a module, or a partial of one, as every process calls it: launches are
            planned on meta tensors, which is quicker than to send them.
    """
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(_share, repeat(launches), range(workers), repeat(workers)))


def _share(launches: Callable[[], Iterable[Launch]], worker: int, workers: int) -> int:
    mine = list({_binary(launch): launch for launch in launches()}.values())[worker::workers]
    compiled = 0
    for launch in mine:
        options = launch.options | {"enable_fp_fusion": True}
        try:
            launch.kernel.warmup(*launch.args, grid=launch.grid, **options)
        except (RuntimeError, TritonError):  # a tile too large, say: who starts it will be told
            continue
        compiled += 1
    return compiled


def _binary(launch: Launch) -> tuple[Any, ...]:
    """What decides which binary a launch needs."""
    args = tuple(
        a.dtype if isinstance(a, Tensor) else (a == 1, a % 16 == 0) if type(a) is int else type(a)
        for a in launch.args
    )
    return launch.kernel, args, tuple(sorted(launch.options.items()))
