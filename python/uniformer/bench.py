"""What the kernels gain on a machine: the same work in plain PyTorch and on them, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .demo.measure import PATHS, compare

JOBS = ("forward", "training step")


def measure(
    model: nn.Module,
    shape: Sequence[int],
    *,
    rounds: int = 5,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Time a model's forward pass and training step on both paths.

    Plain PyTorch is the reference backend, channels-last as the models are.

    Args:
        model: of ``create_model``, on the device to be used; is left with gradients, in training.
        shape: of the input, which is noise.
        rounds: how often each is timed, behind one round that warms up.
        advance: called ``4 * (1 + rounds)`` times, whenever one is done.

    Returns:
        For every job the median seconds on both paths and their ratio.

    Raises:
        ValueError: the model takes no such input.
    """
    inputs = torch.randn(shape, device=next(model.parameters()).device)
    figures: dict[str, Any] = {}
    for name, job in zip(JOBS, (_forward, _training_step), strict=True):
        _, seconds = compare([partial(job, model, inputs)], rounds, advance)
        ratio = seconds["plain"] / seconds["kernels"]
        figures[name] = {**{path: seconds[path] for path in PATHS}, "ratio": ratio}
    return figures


def _forward(model: nn.Module, inputs: Tensor) -> None:
    model.eval()
    with torch.inference_mode():
        model(inputs)
    _finish(inputs)


def _training_step(model: nn.Module, inputs: Tensor) -> None:
    """Forward, the mean square of every output, backward: what a loss costs is next to nothing."""
    model.train()
    model.zero_grad()
    outputs = model(inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    losses = [y.float().square().mean() for y in outputs if isinstance(y, Tensor)]
    torch.stack(losses).sum().backward()
    _finish(inputs)


def _finish(inputs: Tensor) -> None:
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)
