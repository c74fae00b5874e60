"""What a GPU would be asked to do, found on meta tensors without one."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from .launch import Launch, outline, recording
from .library import NAMESPACE, implementation
from .tuning import assuming


@dataclass
class Plan:
    """Our operators' calls, the kernels they launch, PyTorch's operators that compute something."""

    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        """How many kernels start, each of PyTorch's operators taken as one (some are more)."""
        return len(self.launches) + self.operators.total()


@contextlib.contextmanager
def planning(architecture: str = "sm_90") -> Iterator[Plan]:
    """Plan what is done to meta tensors inside the ``with``, which stand for a GPU's there.

    Gradients included: autograd knows meta tensors also where PyTorch was built without CUDA.

    Args:
        architecture: whose tuned options to plan with.

    Yields:
        The plan, complete when the ``with`` ends.
    """
    plan = Plan()
    with assuming(architecture), recording() as plan.launches, _Planner(plan):
        yield plan


class _Planner(TorchDispatchMode):
    """Sends our operators to their host code, and counts PyTorch's."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.namespace == NAMESPACE:
            self.plan.calls.append((function._opname, tuple(map(outline, args))))
            with self:
                return implementation(function._opname)(*args)
        if _computes(function):
            self.plan.operators[function._opname] += 1
        return function(*args, **(kwargs or {}))


_FREE = {"detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"} | {
    "lift_fresh",
    "_unsafe_view",
    "promote_types",
    "resolve_conj",
}


def _computes(function: Any) -> bool:
    return not (function.is_view or function._opname in _FREE)
