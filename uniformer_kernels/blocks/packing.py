"""Linear layers packed once for the CPU's products, where their weights are not going to change."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops

_NAME = "packed"  # of the attribute; no buffer, which would go into every exported program


def pack(module: nn.Module) -> None:
    """Have blocks multiply by a packed copy of a linear layer or a 1x1(x1) convolution.

    It serves as long as the parameters are the tensors they were and nothing was written to them
    (through ``Tensor.data`` nobody notices). No ``state_dict`` and no exported program holds it; a
    copy of the module has one of its own.
    """
    bias = None if module.bias is None else module.bias.detach()
    packed = ops.pack_linear(module.weight.detach().flatten(1), bias)
    if packed is not None:
        setattr(module, _NAME, Packed(packed, (module.weight, module.bias)))


def packed_form(module: nn.Module) -> Tensor | None:
    """What ``pack`` made of the parameters the module has; ``None`` if it made nothing of them."""
    packed = module.__dict__.get(_NAME)
    if packed is None or torch.compiler.is_exporting():  # for any processor
        return None
    # What is compiled has the weights it has.
    fresh = torch.compiler.is_compiling() or packed.is_of(module.weight, module.bias)
    return packed.bytes if fresh else None


class Packed:
    """What ``pack_linear`` made of parameters as they are now; of ``None``, nothing any more."""

    def __init__(self, packed: Tensor | None, parameters: tuple[Tensor | None, ...]) -> None:
        self.bytes, self.parameters = packed, parameters
        self.state = _state(parameters)

    def is_of(self, *parameters: Tensor | None) -> bool:
        """Whether these are the parameters, as they were."""
        same = all(a is b for a, b in zip(self.parameters, parameters, strict=True))
        return same and self.state == _state(parameters)

    # A copy is of the parameters' copies.
    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return Packed(*copy.deepcopy(self.__reduce__()[1], memo))

    def __reduce__(self) -> tuple[type[Packed], tuple[Any, ...]]:
        packed = self.bytes if self.is_of(*self.parameters) else None
        return Packed, (packed, self.parameters)


def _state(tensors: tuple[Tensor | None, ...]) -> list[tuple[int, int]]:
    return [
        (-1 if t.is_inference() else t._version, t.data_ptr()) for t in tensors if t is not None
    ]
