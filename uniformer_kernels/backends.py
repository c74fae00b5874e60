"""Which backend serves a call, and why the others decline it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad

BACKENDS = ("cpu", "cuda", "triton", "reference")
"""Every backend, in order of preference; one may yield a call to those behind it."""

OPERATORS: dict[str, Operator] = {}
"""Every operator by name, as ``explain`` and ``info`` list them."""

_VARIABLE = "UNIFORMER_KERNELS_BACKEND"
_chosen: ContextVar[str | None] = ContextVar("uniformer_kernels_backend", default=None)
# The same for code under torch.compile, which can guard a global but not a context variable.
_chosen_compiled: str | None = None


def _known(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_default = os.environ.get(_VARIABLE) or None
if _default is not None:
    _known(_default, _VARIABLE)


def chosen_backend() -> str | None:
    """The backend asked for by ``use_backend`` or the environment, ``None`` for automatic."""
    if torch.compiler.is_compiling():
        return _chosen_compiled or _default
    return _chosen.get() or _default


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every operator inside the ``with`` by one backend, or raise with its reason.

    Holds for the calling thread; compiled functions follow the last choice of any thread, and are
    compiled again when it changes.

    >>> with uk.use_backend("reference"):
    ...     y = uk.layer_norm(torch.ones(2, 8))

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``.

    Raises:
        ValueError: ``name`` is no backend.
    """
    global _chosen_compiled
    token = _chosen.set(_known(name, "use_backend"))
    before, _chosen_compiled = _chosen_compiled, name
    try:
        yield
    finally:
        _chosen_compiled = before
        _chosen.reset(token)


def in_forward_mode() -> bool:
    """Whether derivatives are taken forward (``torch.func.jvp``), which kernels know nothing of.

    They would drop the tangents without a word.
    """
    return forward_ad._current_level >= 0


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve this call."""


def always(*_: Any, **__: Any) -> None:
    """The reason of a backend that never declines: none."""


@dataclass(frozen=True)
class Implementation:
    """One backend's way of computing an operator, and its reason when it cannot (else None).

    ``yields`` gives the reason for which it leaves a call that it could serve to the backends
    behind it, unless it is asked for.
    """

    compute: Callable[..., Any]
    declines: Callable[..., str | None]
    yields: Callable[..., str | None] = always


class Operator:
    """An operator's implementations; the choice depends on device, dtype and shape only."""

    def __init__(self, name: str, **implementations: Implementation) -> None:
        self.name = name
        self.implementations = {b: implementations[b] for b in BACKENDS if b in implementations}
        OPERATORS[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        chosen = chosen_backend()
        if chosen is not None:
            if reason := self.reason(chosen, *args, **kwargs):
                raise BackendError(f"{self.name}: the {chosen} backend declines: {reason}")
            return self.implementations[chosen].compute(*args, **kwargs)
        serving = self.automatic(*args, **kwargs)
        if serving is None:
            raise BackendError(self.explain(*args, **kwargs))
        return self.implementations[serving].compute(*args, **kwargs)

    def automatic(self, *args: Any, **kwargs: Any) -> str | None:
        """The backend that serves the call unless one is asked for, ``None`` if none can."""
        for backend, implementation in self.implementations.items():
            able = self.reason(backend, *args, **kwargs) is None
            if able and implementation.yields(*args, **kwargs) is None:
                return backend
        return None

    def reason(self, backend: str, *args: Any, **kwargs: Any) -> str | None:
        """Why a backend declines the call, ``None`` when it can serve it."""
        if backend not in self.implementations:
            return f"it does not implement {self.name}"
        if backend != "reference" and in_forward_mode():
            return "it has no forward-mode derivatives"
        return self.implementations[backend].declines(*args, **kwargs)

    def explain(self, *args: Any, **kwargs: Any) -> str:
        chosen = chosen_backend()
        lines, served = [], False
        for backend in BACKENDS:
            reason = self.reason(backend, *args, **kwargs)
            if reason is None and not served and chosen in (None, backend):
                yields = self.implementations[backend].yields(*args, **kwargs)
                if chosen is None and yields:
                    reason = f"could serve, if asked for: {yields}"
                else:
                    reason, served = "serves this call", True
            elif reason is None:
                reason = "could serve" if served else f"could serve, but {chosen} was asked for"
            else:
                reason = f"declines: {reason}"
            lines.append(f"  {backend:<10} {reason}")
        return "\n".join([f"{self.name}:", *lines])


def explain(operator: str, *args: Any, **kwargs: Any) -> str:
    """Say which backend would serve a call and why the others would not.

    >>> print(uk.explain("layer_norm", torch.ones(2, 8, device="meta")))
    layer_norm:
      cpu        declines: x is on meta
      cuda       declines: ...
      triton     declines: ...
      reference  serves this call

    Args:
        operator: the operator's name, e.g. ``"depthwise_conv3d"``.
        *args: the arguments of the call, as the operator takes them.
        **kwargs: its keyword arguments.

    Raises:
        ValueError: there is no such operator.
    """
    if operator not in OPERATORS:
        raise ValueError(f"operator: expected one of {', '.join(OPERATORS)}, got {operator!r}")
    return OPERATORS[operator].explain(*args, **kwargs)


def needs_grad(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd is to record a call: without it, inference spares the Function's cost."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
