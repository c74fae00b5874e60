"""Measure memory: what a call needs at its peak (Linux only), and what it keeps for backward."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uniformer_kernels.bench.timing import Samples

Build = Callable[[str], tuple[Callable[[Tensor], Any], Tensor]]


def compare(build: Build, rivals: Iterable[str], *, rounds: int) -> dict[str, Samples]:
    """The peak of a call's resident memory over that of the model at rest, in fresh processes.

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
    return peak(lambda: call(x))


def peak(call: Callable[[], Any]) -> int:
    """Bytes by which a call raises the resident memory of this process at most."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    rest = _status("VmHWM")
    call()
    return _status("VmHWM") - rest


def _status(key: str) -> int:
    """A size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def saved_bytes(call: Callable[[], Any], parameters: Iterable[Tensor] = ()) -> int:
    """What autograd keeps between a call and its backward, every storage once, less parameters."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    sizes: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result = call()  # alive until counted, so that no address is used twice
    del result
    return sum(size for pointer, size in sizes.items() if pointer not in own)


if __name__ == "__main__":
    from . import models

    for build in (models.small, models.xxs):
        modules, clip = build(1)
        for name, module in modules.items():
            kept = saved_bytes(partial(module.train(), clip), module.parameters())
            print(f"{build.__name__:<8}{name:<24}{kept / 1e6:8.0f} MB")
