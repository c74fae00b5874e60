"""Backward passes by kernels, which nobody differentiates again without being told."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


class _Once(torch.autograd.Function):
    """The gradient as it is; its own derivatives are refused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "a kernel's gradient was differentiated: kernels are differentiable once, "
            "with use_backend('reference') operators are as often as you like"
        )


def once_differentiable(backward: Backward) -> Backward:
    """A backward pass that is not recorded, and raises where it is differentiated.

    PyTorch's decorator of this name cuts its results off from what they were made of: functions of
    ``torch.func`` then find nothing to differentiate, and give zeros.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return results
        tensors = (*gradients, *ctx.saved_tensors)
        sources = [t for t in tensors if t is not None and t.requires_grad]
        if not sources:
            return results
        return tuple(None if t is None else _Once.apply(t, *sources) for t in results)

    return run
