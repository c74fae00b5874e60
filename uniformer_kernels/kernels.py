"""The kernels of every backend, as PyTorch operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from . import (
    _extension,  # noqa: F401 registers the compiled ones
    vmap,
)
from .triton import library

KERNELS: dict[str, list[OpOverload]] = {}
"""Every kernel by its name, of one backend or of several."""

_COMPILED = "uniformer_kernels"  # whose operators have a kernel for each of their devices
_NAMESPACES = {"cpu": _COMPILED, "cuda": _COMPILED, "triton": library.NAMESPACE}


def kernels(backend: str) -> Any:
    """The backend's operators: ``kernels("cpu").depthwise_conv3d`` is the C++ one."""
    return getattr(torch.ops, _NAMESPACES[backend])


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a function to be what a kernel does to fake tensors, on every backend.

    With it the kernel gets its rule for ``torch.vmap``.
    """

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        for namespace in dict.fromkeys(_NAMESPACES.values()):
            operators = getattr(torch.ops, namespace)
            if hasattr(operators, name):
                kernel = getattr(operators, name).default
                torch.library.register_fake(kernel, fake)
                torch.library.register_vmap(kernel, vmap.rule(kernel))
                KERNELS.setdefault(name, []).append(kernel)
        return fake

    return register
