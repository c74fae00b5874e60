"""Swap the forwards of a model's modules, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.nn.parameter import is_lazy

from . import attention, depthwise, hourglass, probe, stems, uniformer, v2
from .family import Family
from .report import Report, Row
from .structure import calls_blocks
from .swap import Swapped, original_class, swap, undo

_FAMILIES = [  # the more particular first
    *hourglass.FAMILIES,
    *uniformer.FAMILIES,
    *v2.FAMILIES,
    *stems.FAMILIES,
    *attention.FAMILIES,
    *depthwise.FAMILIES,
]
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_BEFORE = "swapped before"
_OURS = "its class calls this library already"


def accelerate(
    model: nn.Module, *, blocks: bool = True, attention: bool = True, depthwise: bool = True
) -> Report:
    """Make a model that somebody else built faster, in place.

    Modules keep their names, parameters, buffers, hooks and classes (``isinstance`` says so), and
    compute the same; their forwards call the functions of this library. Recognised are, by what
    they consist of, the blocks and stems of UniFormer and UniFormerV2 as the official code,
    mmaction2, mmdet and mmseg have them, and in any model depthwise convolutions. The forward of
    everything but a convolution is tried on random numbers before it is replaced. A block runs its
    own forward whenever hooks, adapters or parametrisations sit in it. Maps leave swapped modules
    channels-last in memory, so that one behind another pays for no conversion.

    Args:
        model: the model; nothing is done to its tensors.
        blocks: whether to swap whole blocks and stems.
        attention: whether to swap joint attentions, in models with UniFormer's blocks.
        depthwise: whether to swap depthwise convolutions, in any model.

    Returns:
        What was swapped, what was not, and why; false when nothing was. Printed it is a table.

    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model: expected an nn.Module, got {type(model).__name__}")
    return Accelerator(blocks=blocks, attention=attention, depthwise=depthwise)(model)


def restore(model: nn.Module) -> None:
    """Give every module of a model its own forward back, in place.

    Args:
        model: a model that ``accelerate`` has been at; any other stays as it is.

    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model: expected an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, Swapped):
            undo(module)


@dataclass(frozen=True)
class _Candidate:
    name: str
    module: nn.Module
    family: Family
    reason: str | None
    inside: bool

    def row(self) -> Row:
        kind = original_class(self.module).__name__
        swapped = isinstance(self.module, Swapped)
        becomes = self.module._accelerated_as if swapped else None
        return Row(self.name or "(model)", kind, becomes, self.reason)


class Accelerator:
    """``accelerate`` with its options; modules alike are compared once, in whatever models."""

    def __init__(self, **options: bool) -> None:
        self.options = options
        self.compared: dict[tuple, str | None] = {}

    def __call__(self, model: nn.Module) -> Report:
        """Swap what is to be swapped in a model."""
        rows = []
        for candidate in self.candidates(model):
            if candidate.reason is None:
                swap(candidate.module, candidate.family.forward)
            if not candidate.inside:
                rows.append(candidate.row())
        return Report(tuple(rows))

    def candidates(self, model: nn.Module) -> list[_Candidate]:
        """What looks like a member of a family; all is found before any is swapped."""
        first: dict[int, _Candidate] = {}  # of a module that is there twice
        for candidate in self.visit("", model, owner=model):
            first.setdefault(id(candidate.module), candidate)
        found = first.values()
        recognised = any(c.family.option == "blocks" and c.reason in (None, _BEFORE) for c in found)
        wanted = {**self.options, "attention": self.options["attention"] and recognised}
        return [candidate for candidate in found if wanted[candidate.family.option]]

    def visit(
        self, name: str, module: nn.Module, owner: nn.Module, inside: bool = False
    ) -> Iterator[_Candidate]:
        """The candidates at and below a module, which ``owner`` computes with."""
        family = next((f for f in _FAMILIES if f.looks_alike(module)), None)
        if family is not None:
            reason = self.reason(module, family, owner)
            yield _Candidate(name, module, family, reason, inside)
            swapped = reason in (None, _BEFORE) and self.options[family.option]
            inside = inside or swapped or reason == _OURS
        owner = owner if isinstance(module, _CONTAINERS) else module
        for key, child in module.named_children():
            yield from self.visit(f"{name}.{key}" if name else key, child, owner, inside)

    def reason(self, module: nn.Module, family: Family, owner: nn.Module) -> str | None:
        """Why a module that looks like one of a family is not to be swapped."""
        if isinstance(module, Swapped):
            return _BEFORE
        if calls_blocks(module) or calls_blocks(owner):
            return _OURS
        if "forward" in module.__dict__:
            return "its forward was replaced"
        if any(is_lazy(p) for p in module.parameters()):
            return "its parameters are not initialised yet"
        if reason := family.declines(module):
            return reason
        if family.inputs is None:
            return None
        key = family.forward, *probe.signature(module)
        if key not in self.compared:
            inputs = partial(family.inputs, module)
            self.compared[key] = probe.disagreement(module, family.forward, inputs, family.run)
        return self.compared[key]
