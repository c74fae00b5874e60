"""Measure how much memory a call needs, each rival alone in a process (Linux only)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .timing import Samples

Build = Callable[[str], tuple[Callable[[Tensor], Any], Tensor]]


def compare(build: Build, rivals: Iterable[str], *, rounds: int) -> dict[str, Samples]:
    """The peak of a call's resident memory over that of the model at rest.

    Args:
        build: makes a rival and its input from its name; is importable.
        rivals: names.
        rounds: processes of each; how full the heap's pages get varies.

    Returns:
        Bytes by name.
    """
    bytes_: dict[str, list[int]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, found in bytes_.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                growth = process.submit(_growth, build, name, torch.get_num_threads())
                found.append(growth.result())
    return {name: Samples(found) for name, found in bytes_.items()}


def _growth(build: Build, name: str, threads: int) -> int:
    torch.set_num_threads(threads)
    call, x = build(name)
    call(x[..., :64, :64].contiguous())  # loads code and packs weights, but needs little itself
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    rest = _status("VmHWM")
    call(x)
    return _status("VmHWM") - rest


def _status(key: str) -> int:
    """A size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
