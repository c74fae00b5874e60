"""What this machine can do at most, measured: copying, multiply-adds, matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch

import uniformer_kernels as uk

from .. import _extension
from . import graphs, timing
from .case import MATRIX, VECTOR

COPY = "copy"

_COPIED = 2**28  # bytes, far more than caches hold
_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices
_ROUNDS = 5


@dataclass(frozen=True)
class Ceilings:
    """Rates of this machine.

    Args:
        copy: bytes a second, those read and those written.
        fma: float32 operations a second of the vector units, two a multiply-add.
        matmul: operations a second of matrix products, by dtype.
    """

    copy: float
    fma: float
    matmul: Mapping[str, float]

    def floor(
        self, bytes_: float, work: Mapping[str, float], dtype: torch.dtype
    ) -> tuple[float, str]:
        """The least seconds a call can take, and the ceiling that says so.

        Args:
            bytes_: that have to move.
            work: operations by unit.
            dtype: of the products.
        """
        times = {COPY: bytes_ / self.copy, VECTOR: 0.0, MATRIX: 0.0}
        if VECTOR in work:
            # Only float64 runs at another rate than float32; the products tell how much slower.
            times[VECTOR] = work[VECTOR] / (self.fma / (2 if dtype == torch.float64 else 1))
        if MATRIX in work:
            times[MATRIX] = work[MATRIX] / self.matmul[name(dtype)]
        bound = max(times, key=lambda unit: times[unit])
        return max(times[COPY], times[VECTOR] + times[MATRIX]), bound

    def json(self) -> dict[str, Any]:
        return asdict(self)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(device: torch.device, dtypes: Sequence[torch.dtype]) -> Ceilings:
    """All rates, in a few seconds; each the best of some rounds, as ceilings are."""
    n = _SIDE[device.type]
    matmul = {}
    for dtype in dict.fromkeys([torch.float32, *dtypes]):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        matmul[name(dtype)] = (
            2
            * n**3
            / min(
                _least(lambda: a @ b, device),  # noqa: B023 called at once
                _least(lambda: uk.linear(a, b), device),  # noqa: B023 oneDNN's, or one of our own
            )
        )
    source = torch.zeros(_COPIED // 4, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / _least(lambda: target.copy_(source), device)
    return Ceilings(copy, fma(device) or matmul["float32"], matmul)


def fma(device: torch.device) -> float | None:
    """Float32 operations a second out of registers; None where nothing here can measure it.

    On a GPU float32 products run on the same units, unless TF32 was allowed.
    """
    if device.type != "cpu" or _extension._introspect is None:
        return None
    threads, operations = torch.get_num_threads(), 2**30
    loop = _extension._introspect.multiply_adds  # lets go of Python's lock
    with ThreadPoolExecutor(threads) as pool:

        def run() -> None:
            list(pool.map(loop, [operations // 2] * threads))

        return threads * operations / _least(run, device)


def _least(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest round."""
    if device.type == "cuda":
        found = graphs.compare({"": lambda: call}, rounds=_ROUNDS, graph=False)[""]
        if isinstance(found, str):
            raise RuntimeError(f"a ceiling cannot be measured: {found}")
        return min(found.values)
    return min(timing.compare({"": call}, rounds=_ROUNDS, sample=0.02)[""].values)
