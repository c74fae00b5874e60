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

    The second time draws the same random numbers, starts from the same running statistics, as these
    shift the sums behind a batch's, and leaves them alone.
    """
    if not torch.is_grad_enabled():
        return block(*args)
    before = [(norm, name, buffer.clone()) for norm, name, buffer in _statistics(block)]

    def contexts() -> tuple[contextlib.AbstractContextManager, ...]:
        return contextlib.nullcontext(), _with(before)

    return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)


Statistics = list[tuple[nn.Module, str, Tensor]]


def _statistics(block: nn.Module) -> Statistics:
    """The buffers of norms by batch statistics."""
    return [
        (norm, name, buffer)
        for norm in block.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training
        for name, buffer in norm.named_buffers()
    ]


@contextlib.contextmanager
def _with(statistics: Statistics) -> Iterator[None]:
    """Norms count and average a batch in copies of these, which are thrown away."""
    own = [(norm, name, getattr(norm, name)) for norm, name, _ in statistics]
    try:
        for norm, name, buffer in statistics:
            setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, name, buffer in own:
            setattr(norm, name, buffer)
