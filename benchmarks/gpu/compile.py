"""Compile every kernel the other stages start, on all processors at once.

Triton compiles when a kernel is first started, one after another: minutes that no other stage has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from uniformer_kernels.triton import tuning
from uniformer_kernels.triton.launch import Launch
from uniformer_kernels.triton.plan import planning
from uniformer_kernels.tune import operators

from ..workloads import Workload

_VIDEO, _LIGHT = (16, 224, 224), (16, 160, 160)
_WORKLOADS = [
    Workload("uniformer_video_small", (16, 3, *_VIDEO), training=False),
    Workload("uniformer_video_small", (16, 3, *_VIDEO), training=True),
    Workload("uniformer_video_xxs", (1, 3, *_LIGHT), training=False),
    Workload("uniformer_video_xxs", (16, 3, *_LIGHT), training=True),
]


def run() -> Iterator[dict[str, Any]]:
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        compiled = sum(pool.map(_compile, range(workers), repeat(workers)))
    yield {"what": "kernels compiled", "compiled_kernels": compiled}


def _compile(worker: int, workers: int) -> int:
    """This worker's share, into Triton's cache on disk."""
    share = list({_kind(launch): launch for launch in _launches()}.values())[worker::workers]
    for launch in share:
        options = launch.options | {"enable_fp_fusion": True}
        launch.kernel.warmup(*launch.args, grid=launch.grid, **options)
    return len(share)


def _launches() -> Iterator[Launch]:
    architecture = tuning.architecture(torch.device("cuda"))
    for workload in _WORKLOADS:
        yield from workload.plan(architecture).launches
    for dtype in (torch.bfloat16, torch.float32):
        with planning(architecture) as plan:
            operators(16, dtype)
        yield from plan.launches


def _kind(launch: Launch) -> tuple[Any, ...]:
    """What decides which binary a launch needs."""
    args = tuple(
        a.dtype if isinstance(a, Tensor) else (a == 1, a % 16 == 0) if type(a) is int else type(a)
        for a in launch.args
    )
    return launch.kernel, args, tuple(sorted(launch.options.items()))
