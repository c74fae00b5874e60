"""Run the same work on both paths: results, times, memory."""

from __future__ import annotations

import ctypes
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from typing import TypeVar

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformer_kernels import use_backend

from ..registry import create_model

PATHS = ("plain", "kernels")
"""Plain PyTorch, which is the reference backend; and the library's own choice."""

Result = TypeVar("Result")


def on(path: str) -> AbstractContextManager:
    """Serve the operators as one of ``PATHS`` does."""
    return use_backend("reference") if path == "plain" else nullcontext()


def classify(model: nn.Module, clip: Tensor) -> Tensor:
    """Logits ``[B, classes]`` of ``[B, 3, T, H, W]``, in eval mode."""
    model.eval()
    with torch.inference_mode():
        return model(clip)


def train(model: nn.Module, clip: Tensor) -> list[Tensor]:
    """Forward, cross-entropy against class 0, backward; no optimiser: that is the same for both.

    Returns:
        The loss and, behind it, every parameter's gradient.
    """
    model.train()
    model.zero_grad()
    loss = F.cross_entropy(model(clip), torch.zeros(len(clip), dtype=torch.long))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def compare(
    jobs: Sequence[Callable[[], Result]], rounds: int, advance: Callable[[], None]
) -> tuple[dict[str, list[Result]], dict[str, float]]:
    """Run every job on both paths in turn, so that both meet the same state of the machine.

    Args:
        jobs: the work, the same for both paths.
        rounds: how many timed rounds follow the first, which warms up.
        advance: called after each job.

    Returns:
        Of each path, the jobs' results in the first round; and the median seconds of a job in the
        rounds behind it.
    """
    results: dict[str, list[Result]] = {path: [] for path in PATHS}
    seconds: dict[str, list[float]] = {path: [] for path in PATHS}
    for number in range(1 + rounds):
        for job in jobs:
            for path in PATHS:
                start = time.perf_counter()
                with on(path):
                    result = job()
                if number:
                    seconds[path].append(time.perf_counter() - start)
                else:
                    results[path].append(result)
                advance()
    return results, {path: statistics.median(times) for path, times in seconds.items()}


def peak_memory(path: str, model: str, num_classes: int, shape: Sequence[int]) -> dict[str, float]:
    """MiB by which ``classify`` and ``train`` raise the resident memory of a process at their peak.

    ``classify`` takes one clip and ``train`` all of the batch ``shape``, ``[B, 3, T, H, W]``.
    Each path gets a process of its own, since what one has allocated the next would find again.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak_memory, path, model, num_classes, shape).result()


def _peak_memory(path: str, model: str, num_classes: int, shape: Sequence[int]) -> dict[str, float]:
    net, clip = create_model(model, num_classes=num_classes), torch.randn(shape)
    with on(path):
        classify(net, clip[:1, ..., :32, :32])  # what libraries set up once is not the work's own
        _give_back_freed()
        start = psutil.Process().memory_info().rss
        peaks = {
            "classify": _peak_rss(lambda: classify(net, clip[:1])),
            "train": _peak_rss(lambda: train(net, clip)),
        }
    return {name: (peak - start) / 2**20 for name, peak in peaks.items()}


def _give_back_freed() -> None:
    """Free memory that the allocator keeps would serve the work without a rise; glibc's can go."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _peak_rss(job: Callable[[], object]) -> int:
    """Bytes resident at the job's peak, looked at every millisecond."""
    process, done = psutil.Process(), threading.Event()
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        job()
    finally:
        done.set()
        watcher.join()
    return max(peak, process.memory_info().rss)
