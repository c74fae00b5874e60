"""Compile every kernel the other stages start: minutes that none of them has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from uniformer_kernels.triton import tuning
from uniformer_kernels.triton.ahead import compile_all
from uniformer_kernels.triton.launch import Launch
from uniformer_kernels.triton.plan import planning
from uniformer_kernels.tune.calls import operators

from ..workloads import Workload

_VIDEO, _LIGHT = (16, 224, 224), (16, 160, 160)
_WORKLOADS = [
    Workload("uniformer_video_small", (16, 3, *_VIDEO), training=False),
    Workload("uniformer_video_small", (16, 3, *_VIDEO), training=True),
    Workload("uniformer_video_xxs", (1, 3, *_LIGHT), training=False),
    Workload("uniformer_video_xxs", (16, 3, *_LIGHT), training=True),
]


def run() -> Iterator[dict[str, Any]]:
    yield {"what": "kernels compiled", "compiled_kernels": compile_all(launches)}


def launches() -> Iterator[Launch]:
    architecture = tuning.architecture(torch.device("cuda"))
    for workload in _WORKLOADS:
        yield from workload.plan(architecture).launches
    for dtype in (torch.bfloat16, torch.float32):
        with planning(architecture) as plan:
            operators(16, dtype)
        yield from plan.launches
