"""Whether a forward computes what it looks like: both are run on random numbers and compared.

Modules of the same names and shapes may still have another activation, mask or order of layers. So
the module's own forward is tried against ours in a double of it, with random parameters on the CPU,
in float64 where it can; neither the module nor any random number generator is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import use_backend
from .swap import PARTS, Swapped, original_class, swap

_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4}
_HOOKS = [name for name in nn.Module().__dict__ if name.endswith(("_hooks", "_hooks_with_kwargs"))]
_INDIFFERENT = {*nn.Module().__dict__, "drop_prob", PARTS}

Inputs = Iterable[tuple[Any, ...]]
Run = Callable[[nn.Module, tuple[Any, ...]], Any]


class Random:
    """Random numbers of their own, for parameters and inputs."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.options: dict[str, Any] = {
            "generator": self.generator,
            "dtype": dtype,
            "device": "cpu",
        }

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, **self.options)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, **self.options)


def call(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The usual way to run a module."""
    return module(*(x.clone() if isinstance(x, Tensor) else x for x in inputs))


def disagreement(
    module: nn.Module,
    mixin: type[Swapped],
    inputs: Callable[[Random], Inputs],
    run: Run = call,
) -> str | None:
    """Why the module's own forward is not what ``mixin`` computes, or ``None``.

    Args:
        module: the module; it may be on any device, sharded or without data.
        mixin: the forward it would get.
        inputs: makes arguments to compare with.
        run: calls a module with them.
    """
    # Some compute a norm in float32, and can do nothing else.
    for dtype, tolerance in _TOLERANCES.items():
        random = Random(dtype)
        theirs, ours = (_double(module, Random(dtype), {}) for _ in range(2))
        swap(ours, mixin)
        with torch.no_grad(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
            pairs = [(arguments, *_attempt(theirs, arguments, run)) for arguments in inputs(random)]
            refused = next((error for _, _, error in pairs if error), None)
            if refused is None:
                with use_backend("reference"):
                    reasons = (_differs(ours, a, run, want, tolerance) for a, want, _ in pairs)
                    return next((reason for reason in reasons if reason), None)
    return f"its forward does not take what it should: {refused}"


def _attempt(
    module: nn.Module, arguments: tuple[Any, ...], run: Run
) -> tuple[tuple[Tensor, ...], str | None]:
    """A module's results, or its error in one line."""
    try:
        results = run(module, arguments)
    except Exception as error:
        text = " ".join(str(error).split())
        return (), f"{type(error).__name__}: {text[:80]}"
    return results if isinstance(results, tuple) else (results,), None


def _differs(
    ours: nn.Module,
    arguments: tuple[Any, ...],
    run: Run,
    want: tuple[Tensor, ...],
    tolerance: float,
) -> str | None:
    got, error = _attempt(ours, arguments, run)
    if error:
        return f"it is not served: {error}"
    if len(got) != len(want) or not all(isinstance(theirs, Tensor) for theirs in want):
        return "its forward returns something else"
    for mine, theirs in zip(got, want, strict=True):
        if mine.shape != theirs.shape:
            return "its forward returns something else"
        error = ((mine - theirs).abs().max() / theirs.abs().max()).item()
        if not error <= tolerance:
            return f"its forward computes something else: {error:.1g} off on random numbers"
    return None


def signature(module: nn.Module) -> tuple[Any, ...]:
    """What decides about the result; rates and modes do not."""
    return tuple(
        (
            name,
            original_class(m),
            tuple((k, _hashable(v)) for k, v in m.__dict__.items() if k not in _INDIFFERENT),
            tuple((k, None if p is None else p.shape) for k, p in m._parameters.items()),
        )
        for name, m in module.named_modules()
    )


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _double(module: nn.Module, random: Random, seen: dict[int, nn.Module]) -> nn.Module:
    """The module evaluating, without hooks and with other numbers; its attributes are shared.

    Not a deep copy: sharded modules forbid it, and it would take the memory of the parameters.
    """
    if id(module) in seen:
        return seen[id(module)]
    double = seen[id(module)] = object.__new__(original_class(module))
    double.__dict__.update(module.__dict__, training=False)
    for name in _HOOKS:
        double.__dict__[name] = type(module.__dict__[name])()
    double.__dict__["_parameters"] = {
        name: None if p is None else nn.Parameter(_parameter(p, random))
        for name, p in module._parameters.items()
    }
    double.__dict__["_buffers"] = {
        name: None if b is None else _buffer(name, b, random) for name, b in module._buffers.items()
    }
    double.__dict__["_modules"] = {
        name: None if m is None else _double(m, random, seen) for name, m in module._modules.items()
    }
    return double


def _parameter(p: Tensor, random: Random) -> Tensor:
    """Of a size that keeps activations about one."""
    fan_in = p.shape[1:].numel() if p.dim() > 1 and p.shape[0] > 1 else 1
    return random.normal(*p.shape) / max(fan_in, 1) ** 0.5


def _buffer(name: str, buffer: Tensor, random: Random) -> Tensor:
    if not buffer.is_floating_point():
        return torch.zeros(buffer.shape, dtype=buffer.dtype, device="cpu")
    if name.endswith("var"):
        return 0.5 + random.uniform(*buffer.shape)
    return random.normal(*buffer.shape)
