"""The operators of a pass, each alone against the least it can take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry
from uniformer.profiling.instruments import traffic, works

from uniformer_kernels.bench.case import MATRIX, VECTOR
from uniformer_kernels.bench.ceilings import Ceilings
from uniformer_kernels.bench.graphs import compare

from .rows import OURS, row


@dataclass
class Kind:
    """Calls of an operator that cost the same, and what the first of them was given."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bytes: int
    flop: int
    calls: int = 0

    def __str__(self) -> str:
        shapes = ("×".join(map(str, t.shape)) for t in self.tensors)
        return f"{self.function._opname} {', '.join(shapes)}"

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]

    def floor(self, ceilings: Ceilings) -> tuple[float, str]:
        """The least seconds of a call, and the ceiling that says so."""
        unit = VECTOR if self.function._opname.startswith("depthwise_conv3d") else MATRIX
        floats = (t.dtype for t in self.tensors if t.is_floating_point())
        work = {unit: self.flop} if self.flop else {}
        return ceilings.floor(self.bytes, work, next(floats, torch.float32))

    def measure(self, pass_: str, ceilings: Ceilings) -> dict[str, Any]:
        """A row of this operator alone, on copies of what it was given."""

        def make() -> Callable[[], object]:
            args, kwargs = tree_map(_copy, (self.args, self.kwargs))
            return torch.no_grad()(lambda: self.function(*args, **kwargs))

        least, bound = self.floor(ceilings)
        found = row(f"{pass_}: {self}", compare({OURS: make}, rounds=5))
        return found | {"calls": self.calls, "floor_us": least * 1e6, "bound": bound}


class Calls(TorchDispatchMode):
    """Collects every operator that computes something, by what decides its cost."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[Any, ...], Kind] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if works(function):
            key = function, *map(_outline, tree_leaves((args, kwargs)))
            if key not in self.found:
                moved = traffic(function._schema, args, kwargs, result)
                flop = flop_registry.get(function.overloadpacket, _nothing)
                work = flop(*args, **kwargs, out_val=result)
                self.found[key] = Kind(function, args, kwargs, moved, work)
            self.found[key].calls += 1
        return result


def kinds(call: Callable[[], object]) -> list[Kind]:
    """Of one pass."""
    call()
    # Backward in this thread, where the mode is.
    with torch.autograd.set_multithreading_enabled(False), Calls() as calls:
        call()
    return list(calls.found.values())


def measured(
    pass_: str, call: Callable[[], object], ceilings: Ceilings
) -> Iterator[dict[str, Any]]:
    """A row for every kind of call in a pass."""
    for kind in kinds(call):
        yield kind.measure(pass_, ceilings)


def _outline(value: Any) -> Any:
    return (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _nothing(*_: Any, **__: Any) -> int:
    return 0
