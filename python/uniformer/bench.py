"""What the kernels gain on a machine: the same work in plain PyTorch and on them, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from uniformer_kernels.bench.timing import WARM_UP, compare

from .demo.measure import PATHS, on

JOBS = ("forward", "training step")


def measure(
    model: nn.Module,
    shape: Sequence[int],
    *,
    jobs: Sequence[str] = JOBS,
    rounds: int = 5,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Time a model's forward pass and training step on both paths.

    Plain PyTorch is the reference backend, channels-last as the models are.

    Args:
        model: of ``create_model``, on the device to be used; is left with gradients, in training.
        shape: of the input, which is noise.
        jobs: which of ``JOBS``.
        rounds: how often each is timed, behind some that warm up.
        advance: called ``calls(jobs, rounds)`` times, whenever one is done.

    Returns:
        For every job the median seconds on both paths and their ratio.

    Raises:
        ValueError: the model takes no such input.
    """
    inputs = torch.randn(shape, device=next(model.parameters()).device)
    figures: dict[str, Any] = {}
    for name in jobs:
        job = _forward if name == JOBS[0] else _training_step
        rivals = {path: partial(_run, path, job, model, inputs, advance) for path in PATHS}
        samples = compare(rivals, rounds=rounds, sample=0)
        seconds = {path: samples[path].median for path in PATHS}
        figures[name] = {**seconds, "ratio": seconds["plain"] / seconds["kernels"]}
    return figures


def calls(jobs: Sequence[str], rounds: int) -> int:
    """How often ``measure`` runs a job."""
    return len(PATHS) * len(jobs) * (WARM_UP + rounds)


def _run(
    path: str,
    job: Callable[[nn.Module, Tensor], None],
    model: nn.Module,
    inputs: Tensor,
    advance: Callable[[], None],
) -> None:
    with on(path):
        job(model, inputs)
    advance()


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
