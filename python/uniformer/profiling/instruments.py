"""What is told where in a model a pass is, and makes figures of it: seconds, bytes, launches.

An instrument is a context of one pass; ``mark(label)`` says that what follows belongs to ``label``,
``result()`` tells what belonged to each.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REST = "the rest"
"""The label of what is in no block: norms and classifiers behind them, copies between them."""

_MARK = "uniformer.profiling: "
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaMemcpy", "cudaMemset")  # of CUDA's two interfaces


class Clock(AbstractContextManager):
    """Seconds by label, from every mark to the next."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, Any]] = []

    def __exit__(self, *_: Any) -> None:
        self.mark(REST)

    def mark(self, label: str) -> None:
        self.marks.append((label, self.now()))

    def result(self) -> dict[str, float]:
        seconds: dict[str, float] = defaultdict(float)
        for (label, start), (_, end) in itertools.pairwise(self.marks):
            seconds[label] += self.between(start, end)
        return seconds

    def now(self) -> Any:
        return time.perf_counter()

    def between(self, start: Any, end: Any) -> float:
        return end - start


class CudaClock(Clock):
    """The GPU's own seconds: events in the stream, read at the end."""

    def __exit__(self, *_: Any) -> None:
        self.mark(REST)
        torch.cuda.synchronize()

    def now(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3


class Traffic(TorchDispatchMode):
    """Bytes and calls of all operators but views, by label."""

    def __init__(self) -> None:
        super().__init__()
        self.label = REST
        self.counts: dict[str, tuple[int, int]] = {}

    def mark(self, label: str) -> None:
        self.label = label

    def result(self) -> dict[str, tuple[int, int]]:
        return self.counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if works(func):
            moved, calls = self.counts.get(self.label, (0, 0))
            moved += traffic(func._schema, args, kwargs or {}, result)
            self.counts[self.label] = moved, calls + 1
        return result


_ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_OVERWRITES = {"copy_", "fill_", "zero_"}  # do not read what they change


@functools.cache
def works(func: torch._ops.OpOverload) -> bool:
    """Whether an operator does more than to make a view, to allocate or to answer a question."""
    schema = func._schema
    aliases = [r.alias_info for r in schema.returns]
    views = any(alias is not None and not alias.is_write for alias in aliases)
    makes = schema.is_mutable or any("Tensor" in str(r.type) for r in schema.returns)
    return makes and not views and _name(schema) not in {*_ALLOCATES, "_unsafe_view"}


def _name(schema: torch._C.FunctionSchema) -> str:
    return schema.name.rpartition("::")[2]


def traffic(
    schema: torch._C.FunctionSchema, args: tuple, kwargs: dict[str, Any], result: Any
) -> int:
    """Bytes of the tensors a call was given, those of them it changed, and the new ones."""
    given = dict(zip((a.name for a in schema.arguments), args)) | kwargs  # noqa: B905 defaults
    changed = [
        given[a.name]
        for a in schema.arguments
        if a.name in given and a.alias_info is not None and a.alias_info.is_write
    ]
    results = result if len(schema.returns) > 1 else [result][: len(schema.returns)]
    new = [y for r, y in zip(schema.returns, results, strict=True) if r.alias_info is None]
    if _name(schema) in _OVERWRITES:
        del given["self"]
    return sum(map(_bytes, tree_leaves((list(given.values()), changed, new))))


def _bytes(value: Any) -> int:
    """Of a tensor, the repeated elements of an expanded one once."""
    if not isinstance(value, Tensor):
        return 0
    if value.layout is not torch.strided:
        return value.numel() * value.element_size()
    sizes = (n for n, step in zip(value.shape, value.stride(), strict=True) if step or not n)
    return functools.reduce(lambda a, b: a * b, sizes, value.element_size())


class Trace(AbstractContextManager):
    """Kernels started by label, as CUDA's profiler sees them; copies and fills count."""

    def __init__(self) -> None:
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        self.profiler = torch.profiler.profile(activities=activities)

    def __enter__(self) -> Trace:
        self.profiler.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.mark(REST)
        torch.cuda.synchronize()
        self.profiler.__exit__(*error)

    def mark(self, label: str) -> None:
        with torch.profiler.record_function(_MARK + label):
            pass

    def result(self) -> dict[str, int]:
        host = (e for e in self.profiler.events() if e.device_type == DeviceType.CPU)
        return launches_by_label((e.time_range.start, e.name) for e in host)


def launches_by_label(events: Iterable[tuple[float, str]]) -> dict[str, int]:
    """Count launches behind each label, from when events began and their names."""
    counts: dict[str, int] = defaultdict(int)
    label = REST
    for _, name in sorted(events):
        if name.startswith(_MARK):
            label = name.removeprefix(_MARK)
        elif name.startswith(_LAUNCHES):
            counts[label] += 1
    return counts
