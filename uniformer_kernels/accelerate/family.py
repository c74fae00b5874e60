"""A kind of module that is recognised, and the forward it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from . import probe
from .swap import Swapped


@dataclass(frozen=True)
class Family:
    """How modules are told apart.

    Args:
        option: the keyword of ``accelerate`` that turns it on.
        looks_alike: whether a module has the parts; only of such there is a row in the report.
        declines: why the module cannot be served, ``None`` when its structure fits.
        forward: what it gets then, and the name of what it becomes.
        inputs: arguments to compare its own forward with, ``None`` to trust the structure.
        run: calls a module with them.
    """

    option: str
    looks_alike: Callable[[nn.Module], bool]
    declines: Callable[[nn.Module], str | None]
    forward: type[Swapped]
    inputs: Callable[[nn.Module, probe.Random], probe.Inputs] | None
    run: probe.Run = probe.call
