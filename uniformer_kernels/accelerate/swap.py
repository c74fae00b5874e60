"""Put another forward in front of a living module's own, and take it away again.

The module's class becomes a generated subclass of it, so everything else about the module, its
parameters and hooks above all, stays as it is.
"""

from __future__ import annotations

import copyreg
import functools
import types
from typing import Any, ClassVar

from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..blocks import has_hooks

PARTS = "_accelerated_parts"
# An accelerated block serves whichever of the two its norms have become.
_SAME = {nn.SyncBatchNorm: nn.BatchNorm3d, nn.BatchNorm2d: nn.BatchNorm3d}


class Swapped:
    """The faster forward of a generated class, which has the module's own class behind it.

    ``forward`` calls ``super().forward`` for whatever it cannot serve.
    """

    _accelerated_from: ClassVar[type[nn.Module]]
    _accelerated_as: ClassVar[str]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A generated class cannot be found by its name: it is generated again."""
        reduced: Any = super().__reduce_ex__(protocol)
        rebuild, args, *state = reduced
        if rebuild is copyreg.__newobj__ and args == (_generated(type(self)),):
            mixin, original = args[0].__bases__
            return _blank, (mixin, original), *state
        return rebuild, args, *state


def swap(module: nn.Module, mixin: type[Swapped]) -> None:
    """Make ``mixin`` the module's forward."""
    module.__dict__[PARTS] = _parts(module)
    module.__class__ = _generate(mixin, type(module))


def undo(module: nn.Module) -> None:
    """Give a swapped module its own forward back, whatever its class has become since."""
    module.__class__ = _without(type(module))
    del module.__dict__[PARTS]


def original_class(module: nn.Module) -> type[nn.Module]:
    """The module's class, or the one it had before it was swapped."""
    return getattr(type(module), "_accelerated_from", type(module))


def untouched(module: nn.Module, *, dropout: bool = False) -> bool:
    """Whether nothing but ``forward`` would see it if a swapped module's parts were not called.

    They must be of the classes they had when it was swapped, without hooks, global ones included,
    with plain tensors as parameters, and none of them may be a dropout that drops, unless
    ``dropout`` says that the caller takes care of it.
    """
    return not _has_any_global_hook() and _is_as(module, module.__dict__[PARTS], dropout)


def _is_as(module: nn.Module, parts: tuple, dropout: bool) -> bool:
    children = module._modules
    if sum(child is not None for child in children.values()) != len(parts):
        return False
    for name, kind, inner in parts:
        child = children.get(name)
        if child is None or _kind(child) is not kind or has_hooks(child):
            return False
        if kind is nn.Dropout and not dropout and child.training and child.p:
            return False
        for parameter in child._parameters.values():
            if type(parameter) is not nn.Parameter and is_traceable_wrapper_subclass(parameter):
                return False
        if not _is_as(child, inner, dropout):
            return False
    return True


def _parts(module: nn.Module) -> tuple:
    """Names and kinds of all modules inside, nested as they are."""
    return tuple(
        (name, _kind(child), _parts(child))
        for name, child in module._modules.items()
        if child is not None
    )


def _kind(module: nn.Module) -> type[nn.Module]:
    cls = original_class(module)
    return _SAME.get(cls, cls)


@functools.cache
def _generate(mixin: type[Swapped], original: type[nn.Module]) -> type[nn.Module]:
    """One class for all modules of a class; it calls itself as that one does."""
    names = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_accelerated_from": original,
    }
    return _class(original.__name__, (mixin, original), names)


def _generated(cls: type) -> type:
    """The generated class that ``cls`` is or is made of."""
    return next(c for c in cls.__mro__ if "_accelerated_from" in c.__dict__)


def _without(cls: type) -> type:
    """``cls`` without the generated class: what it stands in front of takes its place."""
    if "_accelerated_from" in cls.__dict__:
        return cls.__dict__["_accelerated_from"]
    # Somebody else's dynamic class around ours, such as fully_shard's or parametrize's.
    bases = tuple(_without(b) if issubclass(b, Swapped) else b for b in cls.__bases__)
    own = {k: v for k, v in cls.__dict__.items() if k not in ("__dict__", "__weakref__")}
    return _class(cls.__name__, bases, own)


def _class(name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
    """A class of the metaclass that suits its bases."""
    return types.new_class(name, bases, {}, lambda names: names.update(body))


def _blank(mixin: type[Swapped], original: type[nn.Module]) -> nn.Module:
    """An empty module, for unpickling and copying."""
    cls = _generate(mixin, original)
    return cls.__new__(cls)
