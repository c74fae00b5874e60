"""How rivals are timed on a GPU, with one that replays nothing: what is captured, how often."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from uniformer_kernels.bench import graphs
from uniformer_kernels.bench.timing import Samples

CACHE = 2**20


@pytest.fixture
def gpu(monkeypatch) -> SimpleNamespace:
    """Every call takes ``gpu.seconds``; ``gpu.inputs`` are those that were made, if still alive."""
    gpu = SimpleNamespace(seconds=1e-6, inputs=[], replays=0, waits=0)

    class Graph:
        def replay(self) -> None:
            gpu.replays += 1
            assert all(x() is not None for x in self.inputs), "a replay reads what was freed"

    @contextlib.contextmanager
    def capture(graph: Graph):
        yield
        graph.inputs = [x for x in gpu.inputs if x() is not None]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * gpu.seconds

        def record(self) -> None:
            pass

        synchronize = record

    def wait(clocks: int) -> None:
        gpu.waits += 1

    def allocated() -> int:
        return sum(x().nbytes for x in gpu.inputs if x() is not None)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stub in {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": lambda: stream,
        "_sleep": wait,
        "current_stream": lambda: stream,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=CACHE),
        "graph": capture,
        "memory_allocated": allocated,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    return gpu


def on(gpu: SimpleNamespace, bytes_: int) -> graphs.Make:
    def make() -> Callable[[], Tensor]:
        x = torch.ones(bytes_, dtype=torch.uint8)
        if bytes_:
            gpu.inputs.append(weakref.ref(x))
        return lambda: x + 1

    return make


def test_inputs_outlive_the_graph_that_reads_them(gpu) -> None:
    """It knows their addresses only, where the next rival's would come to lie."""
    found = graphs.compare({"a": on(gpu, CACHE), "b": on(gpu, CACHE)}, rounds=4)
    assert {name: len(samples.values) for name, samples in found.items()} == {"a": 4, "b": 4}
    assert gpu.replays == 2 * (1 + 4)
    assert gpu.waits == 2 * 4  # for the processor, before each
    assert all(x() is None for x in gpu.inputs)  # once they are measured


@pytest.mark.parametrize(
    ("bytes_", "seconds", "copies"),
    [
        (CACHE // 4, 1e-6, 12),  # three caches full
        (16, 1e-6, 32),
        (2 * CACHE, 1e-6, 2),
        (CACHE // 4, 4e-3, 5),  # which take 20 ms
        (CACHE // 4, 1.0, 2),
        (0, 1e-6, 1),  # they share their inputs
    ],
)
def test_as_many_inputs_as_do_not_fit_the_cache(gpu, bytes_, seconds, copies) -> None:
    gpu.seconds = seconds
    assert graphs.replay(on(gpu, bytes_))[1] == copies
    assert graphs.compare({"a": on(gpu, bytes_)}, rounds=1)["a"] == Samples([seconds / copies])


def test_slow_rivals_have_fewer_rounds(gpu, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "_PATIENCE", 0.0)
    fail = RuntimeError("no\nsuch case")

    def lacking() -> graphs.Call:
        raise fail

    found = graphs.compare({"a": on(gpu, 1), "b": on(gpu, 1), "c": lacking}, graph=False)
    assert len(found["a"].values) == len(found["b"].values) == 5
    assert found["c"] == "RuntimeError: no"
    assert gpu.waits == gpu.replays == 0  # what the processor takes counts
