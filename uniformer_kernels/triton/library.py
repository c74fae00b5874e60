"""The schemas of the Triton kernels and where each is implemented: the one place of registration.

Opaque operators of their own, as in ``csrc/library.cpp`` and with the same meaning where the names
are the same. Gradients, fakes and autocast are in ``uniformer_kernels/ops``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

NAMESPACE = "uniformer_kernels_triton"

_SCHEMAS = {  # by the file that implements them
    "depthwise_conv": (
        "depthwise_conv3d(Tensor x, Tensor weight, Tensor? bias, bool residual) -> Tensor",
        "depthwise_conv3d_backward(Tensor dy, Tensor x, Tensor weight, bool residual, "
        "bool want_input, bool want_weight) -> (Tensor, Tensor, Tensor)",
    ),
}

_LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def implementation(name: str) -> Callable[..., Any]:
    """The Python function behind an operator; its file is imported when it is first called."""
    return _IMPLEMENTATIONS[name]


def _deferred(module: str, name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return getattr(import_module(f".{module}", __package__), name)(*args)

    return run


_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}
for _module, _schemas in _SCHEMAS.items():
    for _schema in _schemas:
        _name = _LIBRARY.define(_schema)
        _IMPLEMENTATIONS[_name] = _deferred(_module, _name)
        for _key in ("CUDA", "CPU"):  # the latter for the interpreter
            _LIBRARY.impl(_name, _IMPLEMENTATIONS[_name], _key)
