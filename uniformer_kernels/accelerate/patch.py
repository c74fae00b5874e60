"""Swap the forwards of modules as they are constructed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import nn

from .model import Accelerator

_MARK = "_accelerated_init"


class Patch:
    """Classes whose new instances are accelerated, until it is removed or its ``with`` ends."""

    def __init__(self, classes: tuple[type[nn.Module], ...]) -> None:
        self.classes = classes

    def remove(self) -> None:
        """Leave later instances as they are; those there are stay accelerated."""
        for cls in self.classes:
            if hasattr(cls.__dict__.get("__init__"), _MARK):
                before = getattr(cls.__init__, _MARK)
                if before is None:
                    del cls.__init__
                else:
                    cls.__init__ = before
        self.classes = ()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()


def patch(
    *targets: type[nn.Module] | ModuleType,
    blocks: bool = True,
    attention: bool = True,
    depthwise: bool = True,
) -> Patch:
    """Accelerate every later instance of some classes, as soon as it is constructed.

    It is ``accelerate`` on each new instance of exactly these classes, models or blocks; a subclass
    is a class of its own. It holds for all threads. A class that is patched already stays so.

    Args:
        *targets: classes of modules, or Python modules, for all the classes defined in them.
        blocks, attention, depthwise: what to swap, as ``accelerate`` takes them.

    Returns:
        What to end it with: a context manager that has a method ``remove``.

    Raises:
        TypeError: a target is neither.
        ValueError: no target, or a Python module that defines no class of modules.
    """
    if not targets:
        raise ValueError("patch: targets: expected classes or Python modules, got none")
    accelerator = Accelerator(blocks=blocks, attention=attention, depthwise=depthwise)
    classes = [cls for target in targets for cls in _classes(target)]
    new = tuple(cls for cls in dict.fromkeys(classes) if not _is_patched(cls))
    for cls in new:
        cls.__init__ = _accelerating(cls, accelerator)
    return Patch(new)


def _classes(target: Any) -> Iterator[type[nn.Module]]:
    if isinstance(target, ModuleType):
        found = [
            cls
            for cls in vars(target).values()
            if inspect.isclass(cls)
            and issubclass(cls, nn.Module)
            and cls.__module__ == target.__name__
        ]
        if not found:
            raise ValueError(
                f"patch: targets: expected classes of modules in {target.__name__}, got none"
            )
        yield from found
    elif inspect.isclass(target) and issubclass(target, nn.Module):
        yield target
    else:
        raise TypeError(
            f"patch: targets: expected a class of modules or a Python module, got {target!r}"
        )


def _is_patched(cls: type[nn.Module]) -> bool:
    return hasattr(cls.__dict__.get("__init__"), _MARK)


def _accelerating(cls: type[nn.Module], accelerator: Accelerator) -> Any:
    """The class's constructor, with ``accelerate`` behind it."""
    construct = cls.__init__

    @functools.wraps(construct)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        if type(self) is cls:  # not in the middle of a subclass's constructor
            accelerator(self)

    setattr(init, _MARK, cls.__dict__.get("__init__"))
    return init
