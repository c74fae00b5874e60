"""An operator's call at one shape, its rivals, and the work it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import uniformer_kernels as uk

from .. import reference
from ..backends import OPERATORS

Tensors = dict[str, Tensor]
Results = Tensor | tuple[Tensor | None, ...]
Call = Callable[[], list[Tensor]]

VECTOR, MATRIX = "fma", "matmul"
"""The units operations are counted for: the ceilings they are held against."""

OURS, REFERENCE = "ours", "reference"


@dataclass(frozen=True)
class Rival:
    """Another way to compute an operator.

    Args:
        compute: from tensors by name.
        layout: the operator's tensors as this one takes them, made before anything is timed.
        restore: its results as the operator's, which are compared.
        serves: whether it is one for ``(dtype, device)``.
        own: whether it is this library's, and held to its contract.
    """

    compute: Callable[..., Results]
    layout: Callable[..., Tensors] = dict
    restore: Callable[..., Results] = lambda results: results
    serves: Callable[[torch.dtype, torch.device], bool] = lambda dtype, device: True
    own: bool = False


def compiled(function: Callable[..., Results], **options: Any) -> Rival:
    """``torch.compile`` of a function of tensors by name, when it is first called."""
    ready = cache(lambda: torch.compile(partial(function, **options), dynamic=False))
    return Rival(lambda **tensors: ready()(**tensors))


@dataclass(frozen=True)
class Case:
    """An operator at one of the papers' shapes.

    Args:
        operator: its public name.
        name: of the shape, unique among the operator's.
        shapes: of its tensors, by argument.
        options: its other arguments.
        rivals: by name, besides the reference.
        work: operations of a forward pass by unit; a multiplication with an addition is two.
        gradients: operations of the backward pass, as a multiple of the forward pass's.
        reduction: the longest sum behind an element of the results or of a gradient.
        needs: the arguments that have gradients; ``()`` where the operator has none.
        special: makes arguments that are no normal numbers, from the device.
        exact: what the float64 results are computed by, where the reference would take minutes.
    """

    operator: str
    name: str
    shapes: Mapping[str, tuple[int, ...]]
    reduction: int
    work: Mapping[str, float]
    options: Mapping[str, Any] = field(default_factory=dict)
    rivals: Mapping[str, Rival] = field(default_factory=dict)
    gradients: float = 2.0
    needs: Collection[str] | None = None
    special: Mapping[str, Callable[[torch.device], Tensor]] = field(default_factory=dict)
    exact: Callable[..., Results] | None = None

    def inputs(self, dtype: torch.dtype, device: torch.device) -> Tensors:
        """Unit normal numbers, weights of products divided by the root of their rows' length."""
        torch.manual_seed(0)
        tensors = {}
        for name, shape in self.shapes.items():
            if name in self.special:
                tensors[name] = self.special[name](device)
                continue
            scale = shape[1] ** -0.5 if len(shape) == 2 and name.endswith("weight") else 1
            tensors[name] = (torch.randn(shape, device=device) * scale).to(dtype)
        return tensors

    def differentiable(self) -> Collection[str]:
        names = self.shapes.keys() - self.special.keys() if self.needs is None else self.needs
        return [name for name in self.shapes if name in names]

    @property
    def ours(self) -> Rival:
        """The public operator, served by the backend it chooses."""
        return Rival(partial(getattr(uk, self.operator), **self.options), own=True)

    @property
    def plain(self) -> Rival:
        """The same in plain PyTorch, which is the reference backend."""
        return Rival(partial(getattr(reference, self.operator), **self.options))

    def backends(
        self, dtype: torch.dtype, device: torch.device, *, backward: bool
    ) -> tuple[str | None, list[str]]:
        """Who serves the call, and which other kernels could if they were asked for."""
        tensors = _leaves(self.inputs(dtype, device), self.differentiable() if backward else ())
        call = inspect.signature(getattr(uk, self.operator)).bind(**tensors, **self.options)
        operator = OPERATORS[self.operator]
        serving = operator.automatic(*call.args, **call.kwargs) or REFERENCE
        # Triton on a CPU is its interpreter, which shows nothing by its time.
        others = operator.implementations.keys() - {serving, REFERENCE}
        others -= {"triton"} if device.type == "cpu" else set()
        able = (b for b in others if operator.reason(b, *call.args, **call.kwargs) is None)
        return serving, sorted(able)

    def asked_of(self, backend: str) -> Rival:
        """The public operator, served by a backend that has to be asked for."""
        compute = self.ours.compute

        def asked(**tensors: Tensor) -> Results:
            with uk.use_backend(backend):
                return compute(**tensors)

        return Rival(asked, own=True)


def outputs(results: Results) -> list[Tensor]:
    """The tensors among an operator's results."""
    results = (results,) if isinstance(results, Tensor) else results
    return [t for t in results if t is not None]


def differentiated(
    compute: Callable[..., Results],
    tensors: Tensors,
    wanted: Collection[str] = (),
    dys: Sequence[Tensor] = (),
) -> Call:
    """A call of ``compute``; with ``wanted`` also of the gradients of these tensors.

    Args:
        compute: the function of ``tensors``.
        tensors: its arguments.
        wanted: names among them.
        dys: gradients of the results that have one, as ``reached`` gives them.
    """
    leaves = _leaves(tensors, wanted)
    sources = [leaves[name] for name in wanted]

    def forward() -> list[Tensor]:
        return outputs(compute(**leaves))

    def both() -> list[Tensor]:
        results = forward()
        ends = [y for y in results if y.requires_grad]
        return results + list(torch.autograd.grad(ends, sources, dys))

    return both if sources else forward


def reached(
    compute: Callable[..., Results], tensors: Tensors, wanted: Collection[str]
) -> list[Tensor]:
    """The results that depend on ``wanted`` tensors so that these have gradients."""
    results = outputs(compute(**_leaves(tensors, wanted)))
    return [y.detach() for y in results if y.requires_grad]


def _leaves(tensors: Tensors, wanted: Collection[str]) -> Tensors:
    return {name: t.detach().requires_grad_(name in wanted) for name, t in tensors.items()}
