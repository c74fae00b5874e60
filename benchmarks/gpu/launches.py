"""How many kernels a pass really starts, counted by the profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..models import small, xxs
from .models import inference, on_gpu, training


def kernels(call: Callable[[], object]) -> int:
    """The kernels of one call; copies and fills count as kernels."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in trace.events())


def run() -> Iterator[dict[str, Any]]:
    for what, build in (("UniFormer-S 16×224", small), ("UniFormer-XXS 16×160", xxs)):
        modules, clips = on_gpu(*build(16))  # as elsewhere: its kernels are compiled
        for name, module in modules.items():
            module.eval()
            forward = kernels(inference({name: module}, clips)[name]())
            module.train()
            step = kernels(training({name: module}, clips)[name]())
            yield {"what": f"{what}, {name}", "forward_kernels": forward, "step_kernels": step}
