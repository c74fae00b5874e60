"""Two probes of a GPU in CUDA C++, compiled when they are first asked for."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("probes.cu")
STEPS = 4096
LINKS = 64
_SUMS, _WARPS, _FLOPS = 8, 8, 4096  # as in the source: products of a warp, warps, and of a product


def compile_for(architecture: str, folder: Path) -> Path:
    """A library for ``"90"``, say; nvcc says what is wrong where there is anything."""
    library = folder / "probes.so"
    flags = ["-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", f"-arch=sm_{architecture}"]
    subprocess.run(["nvcc", *flags, str(SOURCE), "-o", str(library)], check=True)
    return library


@functools.cache
def _library() -> ctypes.CDLL:
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(str(compile_for(f"{major}{minor}", Path(folder))))


def _call(function: str, first: int, second: int, data: Tensor) -> None:
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    pointer = ctypes.c_void_p(data.data_ptr())
    if error := getattr(_library(), function)(first, second, pointer, stream):
        raise RuntimeError(f"{function}: CUDA error {error}")


def multiplying() -> tuple[Callable[[], Callable[[], None]], int]:
    """Makes a call that fills the GPU with ``mma.sync`` on registers; and its operations."""
    blocks = 4 * torch.cuda.get_device_properties(0).multi_processor_count

    def make() -> Callable[[], None]:
        out = torch.empty(blocks, 32 * _WARPS, device="cuda")
        return lambda: _call("multiply_in_registers", blocks, STEPS, out)

    return make, blocks * _WARPS * STEPS * _SUMS * _FLOPS


def chain(programmatic: bool) -> Callable[[], Callable[[], None]]:
    """Makes a call of ``LINKS`` kernels that do next to nothing, one after another."""

    def make() -> Callable[[], None]:
        data = torch.zeros(32, device="cuda")
        return lambda: _call("chain", LINKS, int(programmatic), data)

    return make
