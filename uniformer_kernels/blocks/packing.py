"""Linear layers packed once for the CPU's products, where their weights are not going to change."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops

_PACKED, _MADE_OF = "packed", "packed_made_of"


def pack(module: nn.Module) -> None:
    """Have blocks multiply by a packed copy of a linear layer or a 1x1(x1) convolution.

    It becomes a buffer, which no ``state_dict`` holds, and serves as long as the parameters are the
    tensors they were and nothing was written to them. A copy of the module has one of its own.
    """
    bias = None if module.bias is None else module.bias.detach()
    packed = ops.pack_linear(module.weight.detach().flatten(1), bias)
    if packed is not None:
        module.register_buffer(_PACKED, packed, persistent=False)
        setattr(module, _MADE_OF, _MadeOf(module.weight, module.bias))


def packed_form(module: nn.Module) -> Tensor | None:
    """What ``pack`` made of the parameters the module has; ``None`` if it made nothing of them."""
    packed = module._buffers.get(_PACKED)
    # What is compiled has the weights it has.
    if packed is None or torch.compiler.is_compiling():
        return packed
    return packed if getattr(module, _MADE_OF).are(module.weight, module.bias) else None


class _MadeOf:
    """Tensors as they are now."""

    def __init__(self, *tensors: Tensor | None, stale: bool = False) -> None:
        self.tensors, self.state = tensors, None if stale else _state(tensors)

    def are(self, *tensors: Tensor | None) -> bool:
        same = all(a is b for a, b in zip(self.tensors, tensors, strict=True))
        return same and self.state == _state(tensors)

    # In a copy of a module these are the copy's.
    def __deepcopy__(self, memo: dict[int, Any]) -> _MadeOf:
        copies = (copy.deepcopy(t, memo) for t in self.tensors)
        return _MadeOf(*copies, stale=not self.are(*self.tensors))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.tensors, not self.are(*self.tensors))


def _restored(tensors: tuple[Tensor | None, ...], stale: bool) -> _MadeOf:
    return _MadeOf(*tensors, stale=stale)


def _state(tensors: tuple[Tensor | None, ...]) -> list[tuple[int, int]]:
    return [
        (-1 if t.is_inference() else t._version, t.data_ptr()) for t in tensors if t is not None
    ]
