"""Time rivals alternately on a GPU, replayed as CUDA graphs over inputs that do not fit its cache.

A graph takes the launches' cost on the processor out of the comparison; several copies of the
inputs make every call find the L2 cache cold, as it is between the layers of a model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .timing import Samples

Call = Callable[[], Any]
Make = Callable[[], Call]
"""Makes a call with inputs of its own."""

_FEW, _PATIENCE = 5, 2.0  # rounds there are always, and seconds after which there are no more
_LONG = 0.02  # seconds of a graph's calls: what takes so long needs no more of them
_HEAD_START = 1_000_000  # clocks the GPU waits, in which the processor starts a graph


def compare(
    rivals: Mapping[str, Make], *, rounds: int = 20, graph: bool = True
) -> dict[str, Samples | str]:
    """Seconds a call, by name; for a rival that cannot run, the reason.

    Args:
        rivals: how to make each rival's call.
        rounds: timings of each; fewer, but the same for all, where they take long.
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
    names, start = list(ready), time.perf_counter()
    for round_ in range(rounds):
        if round_ >= _FEW and time.perf_counter() - start > _PATIENCE:
            break
        first = round_ % max(len(names), 1)
        for name in names[first:] + names[:first]:
            call, calls = ready[name]
            found[name].append(seconds(call, head_start=graph) / calls)
    return results | {name: Samples(values) for name, values in found.items()}


def _warm(call: Call) -> Call:
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    return call


def seconds(call: Call, *, head_start: bool = False) -> float:
    """Of one call, by the GPU's clock.

    Args:
        call: what to time.
        head_start: let the processor start it before the GPU's clock does, so that only what the
            GPU takes counts.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if head_start:
        torch.cuda._sleep(_HEAD_START)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def replay(make: Make) -> tuple[Call, int]:
    """A graph of calls, and how many there are in it."""
    calls = [_warm(make())]
    before = torch.cuda.memory_allocated()
    other = make()
    size = torch.cuda.memory_allocated() - before
    if size > 0:  # else they share their inputs, and one is as good as many
        copies = _copies(size, seconds(calls[0]))
        calls += [other, *(make() for _ in range(copies - 2))]
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
    return _Replayed(graph, calls), len(calls)


def _copies(size: int, each: float) -> int:
    """How many inputs of so many bytes do not fit the cache; two where a call takes long."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(min(math.ceil(3 * cache / size), 32, int(_LONG / each)), 2)


@dataclass(frozen=True)
class _Replayed:
    """Replays a graph, whose calls' inputs have to outlive it: it knows but their addresses."""

    graph: torch.cuda.CUDAGraph
    calls: Sequence[Call]

    def __call__(self) -> None:
        self.graph.replay()
