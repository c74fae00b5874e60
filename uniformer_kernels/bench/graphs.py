"""Time rivals alternately on a GPU, replayed as CUDA graphs over inputs that do not fit its cache.

A graph takes the launches' cost on the processor out of the comparison; several copies of the
inputs make every call find the L2 cache cold, as it is between the layers of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .timing import Samples

Call = Callable[[], Any]
Make = Callable[[], Call]
"""Makes a call with inputs of its own."""


def compare(
    rivals: Mapping[str, Make], *, rounds: int = 20, graph: bool = True
) -> dict[str, Samples | str]:
    """Seconds a call, by name; for a rival that cannot run, the reason.

    Args:
        rivals: how to make each rival's call.
        rounds: timings of each.
        graph: replay a graph of calls on several inputs; else start one call from Python, so that
            what the processor takes counts, as for a user who does not use graphs.
    """
    ready: dict[str, tuple[Call, int]] = {}
    results: dict[str, Samples | str] = {}
    for name, make in rivals.items():
        try:
            ready[name] = replay(make) if graph else (_warm(make()), 1)
        except Exception as error:  # a rival may lack the case; the others are still measured
            results[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    found: dict[str, list[float]] = {name: [] for name in ready}
    names = list(ready)
    for round_ in range(rounds):
        first = round_ % max(len(names), 1)
        for name in names[first:] + names[:first]:
            call, calls = ready[name]
            found[name].append(seconds(call) / calls)
    return results | {name: Samples(values) for name, values in found.items()}


def _warm(call: Call) -> Call:
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    return call


def seconds(call: Call) -> float:
    """Of one call, by the GPU's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def replay(make: Make) -> tuple[Call, int]:
    """A graph of calls, and how many there are in it."""
    before = torch.cuda.memory_allocated()
    first = _warm(make())
    size = max(torch.cuda.memory_allocated() - before, 1)
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    copies = min(max(math.ceil(3 * cache / size), 2), 32)
    calls = [first, *(make() for _ in range(copies - 1))]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]  # noqa: F841 results must not share memory
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, copies
