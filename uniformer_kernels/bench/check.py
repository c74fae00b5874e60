"""Whether a rival computes what it is timed for: the numerical contract of the kernels' tests.

Against the equation in float64, an error is at most twice that of plain PyTorch in the same
precision, plus a floor for the case that this was lucky: one rounding of the result, and a random
walk of roundings along the longest sum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .case import Case, Results, Rival, Tensors, differentiated, reached


@dataclass(frozen=True)
class Judge:
    """A case's results and gradients in float64, and how far from them a rival's may lie."""

    names: Sequence[str]
    exact: Sequence[Tensor]
    allowed: Sequence[float]

    def objection(self, got: Sequence[Tensor], *, slack: float = 1) -> str | None:
        """What is wrong with results and gradients, None if nothing is.

        Args:
            got: what was computed.
            slack: how many times further off than our contract allows.
        """
        if len(got) != len(self.exact):
            return f"returns {len(got)} tensors where {len(self.exact)} are computed"
        for name, ours, exact, allowed in zip(
            self.names, got, self.exact, self.allowed, strict=True
        ):
            if ours.shape != exact.shape:
                return f"{name} is {list(ours.shape)} where {list(exact.shape)} is computed"
            error = _error(ours, exact)
            if not error <= slack * allowed:
                return f"{name} is off by {error:.2g} where {slack * allowed:.2g} is allowed"
        return None


def results(
    case: Case, rival: Rival, dtype: torch.dtype, device: torch.device, *, backward: bool
) -> list[Tensor]:
    """What a rival computes of the case's inputs, as the operator would return it."""

    def compute(**tensors: Tensor) -> Results:
        return rival.restore(rival.compute(**rival.layout(**tensors)))

    wanted = case.differentiable() if backward else ()
    return _evaluated(compute, case.inputs(dtype, device), wanted, dtype)


def judge(case: Case, dtype: torch.dtype, device: torch.device, *, backward: bool) -> Judge:
    """The float64 results for inputs rounded to ``dtype``, and the errors that are allowed."""
    plain = results(case, case.plain, dtype, device, backward=backward)
    equation = case.plain if case.exact is None else Rival(case.exact)
    wanted = case.differentiable() if backward else ()
    tensors = {
        name: t.double() if t.is_floating_point() else t
        for name, t in case.inputs(dtype, device).items()
    }
    exact = _evaluated(equation.compute, tensors, wanted, dtype)
    found = len(exact) - len(wanted)
    names = [f"result {i + 1}" if found > 1 else "the result" for i in range(found)]
    names += [f"the gradient of {name}" for name in wanted]
    allowed = [
        2 * _error(p, e) + _floor(e, p.dtype, case.reduction)
        for p, e in zip(plain, exact, strict=True)
    ]
    return Judge(names, exact, allowed)


def _evaluated(
    compute: Callable[..., Results], tensors: Tensors, wanted: Collection[str], dtype: torch.dtype
) -> list[Tensor]:
    """Results and gradients; those of the results are the same numbers for every rival."""
    ys = reached(compute, tensors, wanted) if wanted else []
    generator = torch.Generator().manual_seed(1)
    dys = [torch.randn(y.shape, generator=generator).to(dtype).to(y) for y in ys]
    return [t.detach() for t in differentiated(compute, tensors, wanted, dys)()]


def _floor(exact: Tensor, dtype: torch.dtype, reduction: int) -> float:
    if not dtype.is_floating_point or exact.numel() == 0:
        return 0.0
    accumulate = torch.promote_types(dtype, torch.float32)
    steps = torch.finfo(dtype).eps + reduction**0.5 * torch.finfo(accumulate).eps
    return steps * max(1.0, exact.abs().max().item())


def _error(got: Tensor, exact: Tensor) -> float:
    """The largest; infinite where there is a number that is none."""
    if exact.numel() == 0:
        return 0.0
    return (got.double() - exact.double()).abs().max().nan_to_num(nan=torch.inf).item()
