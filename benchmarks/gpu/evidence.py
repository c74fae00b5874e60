"""Where UniFormer-S' time goes: its operators against their floors, and its slowest kernels."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import uniformer
from torch.profiler import ProfilerActivity, profile

from uniformer_kernels.bench import ceilings

from . import floors, nsight
from .models import inference, on_gpu, training
from .rows import OURS

PASSES = ("inference", "training")
_BATCH, _SLOWEST, _SHOWN = 16, 3, 10

Started = list[tuple[str, float]]
"""Names and microseconds of what ran on the GPU, in order."""


def run() -> Iterator[dict[str, Any]]:
    limits = ceilings.measure(torch.device("cuda"), [torch.bfloat16])
    started = {}
    for pass_ in PASSES:
        call = small(pass_)
        yield from floors.measured(pass_, call, limits)
        started[pass_] = kernels(call)
        yield from shares(pass_, started[pass_])
        del call
        torch.cuda.empty_cache()
    for pass_, name in slowest(started)[:_SLOWEST]:
        program = [sys.executable, "-m", "benchmarks.gpu.evidence", pass_]
        found = nsight.look(name, longest(started[pass_], name), program)
        yield {"what": f"{pass_}, Nsight Compute: {name}", "kernel": name} | found


def small(pass_: str) -> Callable[[], object]:
    """One pass of UniFormer-S over 16 clips in bfloat16."""
    torch.manual_seed(0)
    model = uniformer.create_model("uniformer_video_small").train(pass_ == "training")
    modules, clips = on_gpu({OURS: model}, torch.randn(_BATCH, 3, 16, 224, 224))
    return (training if model.training else inference)(modules, clips)[OURS]()


def kernels(call: Callable[[], object]) -> Started:
    """Of one call, as they ran in it."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    on_device = (e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    ordered = sorted(on_device, key=lambda e: e.time_range.start)
    return [(nsight.base(e.name), e.time_range.elapsed_us()) for e in ordered]


def shares(pass_: str, started: Started) -> Iterator[dict[str, Any]]:
    """Rows of those that take longest, all launches of a name together."""
    whole = sum(microseconds for _, microseconds in started)
    for name, times in list(together(started).items())[:_SHOWN]:
        total = {"launches": len(times), "total_us": sum(times), "share": sum(times) / whole}
        yield {"what": f"{pass_}, kernel {name}", "kernel": name} | total


def together(started: Started) -> dict[str, list[float]]:
    """Microseconds of every launch by name, the name that takes longest first."""
    times: dict[str, list[float]] = defaultdict(list)
    for name, microseconds in started:
        times[name].append(microseconds)
    return dict(sorted(times.items(), key=lambda item: -sum(item[1])))


def slowest(started: dict[str, Started]) -> list[tuple[str, str]]:
    """Pass and name of kernels, each once: where it takes longest, the slowest first."""
    totals = [
        (sum(times), pass_, name)
        for pass_, ran in started.items()
        for name, times in together(ran).items()
        if name.isidentifier()  # copies and fills are no kernels
    ]
    found: dict[str, str] = {}
    for _, pass_, name in sorted(totals, reverse=True):
        found.setdefault(name, pass_)
    return [(pass_, name) for name, pass_ in found.items()]


def longest(started: Started, name: str) -> int:
    """Which of the launches of this name takes longest."""
    times = [microseconds for other, microseconds in started if other == name]
    return times.index(max(times))


def main() -> None:
    """One pass for Nsight Compute, which counts no launch before it."""
    (pass_,) = sys.argv[1:]
    call = small(pass_)
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
