"""What every block of a model costs: time, bytes moved, launches; on the kernels and in eager."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from uniformer_kernels import use_backend

from ..layers import ConvStem, DividedBlock, GlobalBlock, HourglassBlock, LocalBlock, PatchStem
from ..layers.v2 import GlobalUniBlock, LocalUniBlock
from .instruments import REST, Clock, CudaClock, Trace, Traffic

PATHS = ("eager", "kernels")
"""Plain PyTorch, which is the reference backend; and the library's own choice."""

_BLOCKS = (
    ConvStem,
    DividedBlock,
    GlobalBlock,
    GlobalUniBlock,
    HourglassBlock,
    LocalBlock,
    LocalUniBlock,
    PatchStem,
)

Mark = Callable[[str], None]
"""Called with the name of a block as it begins, forward or backward, and with ``REST`` behind."""


@dataclass(frozen=True)
class Cost:
    """Of one block in one pass.

    Args:
        seconds: median over the rounds.
        bytes: of all tensors that operators were given and returned, views left out. It is the
            traffic that was asked for: whether it came from a cache is not known.
        launches: kernels started on a GPU, elsewhere operators called, views left out.
    """

    seconds: float = 0.0
    bytes: int = 0
    launches: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds, self.bytes + other.bytes, self.launches + other.launches
        )


@dataclass(frozen=True)
class Row:
    """A block by its name in the model, ``kind`` its class; its cost on each of ``PATHS``."""

    name: str
    kind: str
    costs: Mapping[str, Cost]

    def ratio(self, figure: str) -> float | None:
        """How many times less the kernels need of a field of ``Cost``; ``None`` for of nothing."""
        eager, kernels = (getattr(self.costs[path], figure) for path in PATHS)
        return eager / kernels if kernels else None


def profile_blocks(
    model: nn.Module,
    x: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    train: bool = False,
    rounds: int = 10,
    advance: Callable[[int, int], None] = lambda done, passes: None,
) -> list[Row]:
    """Measure the blocks of a model, on the kernels and in eager by turns.

    Args:
        model: one of this library's, with float32 parameters, on the device of ``x``; is left in
            another dtype, mode and with gradients.
        x: what it takes, float32.
        dtype: of parameters and input; in training autocast's, parameters stay float32.
        train: also run backward, from random gradients of all outputs. A block's cost is that of
            both.
        rounds: timed passes of each path, after those that count, which also warm up.
        advance: called after each pass with the number done and that of all.

    Returns:
        A row a block in the order they run, then ``REST``.

    Raises:
        ValueError: ``rounds`` is below 1, or the model or an operator cannot take ``x``.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    model.train(train)
    if not train:
        model, x = model.to(dtype), x.to(dtype)
    step = _training_pass(model, x, dtype) if train else torch.no_grad()(lambda: model(x))
    kinds = {name: type(m).__name__ for name, m in model.named_modules() if isinstance(m, _BLOCKS)}
    order: dict[str, str] = {}
    counting: list[type[Any]] = [Traffic, Trace] if x.is_cuda else [Traffic]
    clock: type[Any] = CudaClock if x.is_cuda else Clock
    results: dict[tuple[str, type], list[dict[str, Any]]] = defaultdict(list)
    passes = [*itertools.product(counting + [clock] * rounds, PATHS)]
    for done, (make, path) in enumerate(passes, 1):
        instrument = make()

        def mark(label: str, instrument: Any = instrument) -> None:
            if label in kinds:
                order.setdefault(label, kinds[label])
            instrument.mark(label)

        with _on(path), _marking(model, kinds, mark), instrument:
            mark(REST)
            step()
        results[path, make].append(instrument.result())
        advance(done, len(passes))

    def cost(path: str, name: str) -> Cost:
        seconds = statistics.median(result.get(name, 0.0) for result in results[path, clock])
        traffic, operators = results[path, Traffic][0].get(name, (0, 0))
        launches = results[path, Trace][0].get(name, 0) if x.is_cuda else operators
        return Cost(seconds, traffic, launches)

    return [
        Row(name, kind, {path: cost(path, name) for path in PATHS})
        for name, kind in {**order, REST: ""}.items()
    ]


def total(rows: Iterable[Row]) -> Row:
    """The sum of all rows."""
    sums = {path: sum((row.costs[path] for row in rows), Cost()) for path in PATHS}
    return Row("sum", "", sums)


def _on(path: str) -> AbstractContextManager:
    return use_backend("reference") if path == "eager" else nullcontext()


def _training_pass(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    def forward() -> list[Tensor]:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            outputs = tree_leaves(model(x))
        return [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]

    def step() -> None:
        model.zero_grad()
        torch.autograd.backward(forward(), gradients)

    gradients = [torch.randn_like(y) for y in forward()]
    return step


@contextlib.contextmanager
def _marking(model: nn.Module, names: Iterable[str], mark: Mark) -> Iterator[None]:
    """Call ``mark`` as the blocks begin and end, through hooks, in both directions.

    Only blocks have them: hooks inside of a block would have it call its layers one by one.
    """

    def began(name: str, args: tuple) -> tuple:
        mark(name)
        return _edge(args, mark, REST)

    def ended(name: str, result: Any) -> Any:
        mark(REST)
        return _edge(result, mark, name)

    handles = []
    for name in names:
        block = model.get_submodule(name)
        handles += [
            block.register_forward_pre_hook(lambda _, args, name=name: began(name, args)),
            block.register_forward_hook(lambda _, __, result, name=name: ended(name, result)),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _edge(values: Any, mark: Mark, label: str) -> Any:
    """Tensors in ``values`` as they are, but ``mark(label)`` when gradients of all have come.

    What follows a block forward comes before it backward. In front of the first block nothing has a
    gradient, so its backward lasts until the end.
    """
    leaves, structure = tree_flatten(values)
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if at and torch.is_grad_enabled():
        for i, leaf in zip(at, _Edge.apply(mark, label, *(leaves[i] for i in at)), strict=True):
            leaves[i] = leaf
    return tree_unflatten(leaves, structure)


class _Edge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mark: Mark, label: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.mark, ctx.label = mark, label
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        ctx.mark(ctx.label)
        return None, None, *gradients
