"""Compile every kernel and every rival the other stages start: minutes that none of them has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from uniformer_kernels.triton import tuning
from uniformer_kernels.triton.ahead import compile_all
from uniformer_kernels.triton.launch import Launch
from uniformer_kernels.triton.plan import planning
from uniformer_kernels.tune.calls import operators as tuned

from ..workloads import Workload
from . import operators
from .models import FIRST, Family, compile_rival, passes
from .rows import OURS

_SMALL, _VIDEO = "uniformer_video_small", (16, 224, 224)
_LIGHT, _FRAMES = "uniformer_video_xxs", (16, 160, 160)
WORKLOADS = [
    *(Workload(_SMALL, (batch, 3, *_VIDEO), training=False) for batch in (1, 16, 32)),
    *(Workload(_SMALL, (batch, 3, *_VIDEO), training=True) for batch in (16, 32)),
    *(Workload(_LIGHT, (batch, 3, *_FRAMES), training=False) for batch in (1, 16)),
    Workload(_LIGHT, (16, 3, *_FRAMES), training=True),
]


def run() -> Iterator[dict[str, Any]]:
    yield ahead(launches, FIRST)


def ahead(launches: Callable[[], Iterator[Launch]], families: Sequence[Family]) -> dict[str, Any]:
    """Compile what is started, and PyTorch's rivals of these models, side by side.

    A rival that cannot be compiled says so where it is measured.
    """
    jobs = [job for family in families for job in passes(family)]
    with ProcessPoolExecutor(max(len(jobs), 1), mp_context=get_context("spawn")) as pool:
        rivals = [pool.submit(compile_rival, *job) for job in jobs]
        compiled = {"what": "compiled", "compiled_kernels": compile_all(launches)}
        return compiled | {"compiled_rivals": sum(not rival.exception() for rival in rivals)}


def launches() -> Iterator[Launch]:
    yield from planned(WORKLOADS)
    architecture = _architecture()
    for dtype in (torch.bfloat16, torch.float32):
        with planning(architecture) as plan:
            tuned(16, dtype)
        yield from plan.launches
    with planning(architecture) as plan, _WithoutNumbers():
        for _, makes, _ in operators.cases():
            makes[OURS]()()
    yield from plan.launches


def planned(workloads: Sequence[Workload]) -> Iterator[Launch]:
    for workload in workloads:
        yield from workload.plan(_architecture()).launches


def _architecture() -> str:
    return tuning.architecture(torch.device("cuda"))


class _WithoutNumbers(TorchFunctionMode):
    """What is made for the GPU is made on the meta device, which a plan wants."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return function(*args, **kwargs | {k: "meta" for k in kwargs if k == "device"})
