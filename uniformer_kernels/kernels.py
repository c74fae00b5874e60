"""The kernels of every backend, as PyTorch operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import _extension  # noqa: F401 registers the compiled ones
from .triton import library

_NAMESPACES = {"cpu": "uniformer_kernels", "triton": library.NAMESPACE}


def kernels(backend: str) -> Any:
    """The backend's operators: ``kernels("cpu").depthwise_conv3d`` is the C++ one."""
    return getattr(torch.ops, _NAMESPACES[backend])


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a function to be what an operator does to fake tensors, on every backend."""

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        for namespace in _NAMESPACES.values():
            if hasattr(getattr(torch.ops, namespace), name):
                torch.library.register_fake(f"{namespace}::{name}", fake)
        return fake

    return register
