"""A stage's blocks, and how to keep none of their activations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Stage(nn.Sequential):
    """Blocks one after another; the first ``recomputed`` of them keep no activations."""

    recomputed = 0

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` to the same."""
        for block in self.calls():
            x = block(x)
        return x

    def calls(self) -> Iterator[Callable[..., Any]]:
        """The blocks as functions, for whoever passes more from one to the next."""
        for index, block in enumerate(self):
            yield partial(recompute, block) if index < self.recomputed else block


def recompute(block: nn.Module, *args: Any) -> Any:
    """``block(*args)``, computed once more in the backward pass: its activations are not kept.

    The second time draws the same random numbers and leaves running statistics alone.
    """
    if not torch.is_grad_enabled():
        return block(*args)

    def contexts() -> tuple[contextlib.AbstractContextManager, ...]:
        return contextlib.nullcontext(), _untracked(block)

    return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    """Norms by batch statistics count and average the batch in copies, which are thrown away."""
    buffers = [
        (norm, name, buffer)
        for norm in block.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training
        for name, buffer in norm.named_buffers()
    ]
    try:
        for norm, name, buffer in buffers:
            setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, name, buffer in buffers:
            setattr(norm, name, buffer)
