"""Measure the choices of a call's kernels, each held against the default's result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError

from .. import cuda
from ..kernels import kernels
from ..triton import tuning
from ..triton.library import NAMESPACE
from .calls import Call

_GAIN = 0.97  # of the default's time: less of a gain is noise

Rows = dict[str, dict[str, tuning.Options]]
"""An architecture's part of the table: options by kernel and shape class."""

Timer = Callable[[Callable[[], object]], float]

# By operator of the Triton library, whose gradients' names end in _backward: the table's row, and
# the class of a call with such arguments.
_RIVALS: dict[str, tuple[str, Callable[[tuple[Any, ...]], str]]] = {
    cuda.CONVOLUTION: (cuda.CONVOLUTIONS, lambda a: cuda.convolution_class(a[0], a[1])),
    f"{cuda.CONVOLUTION}_backward": (
        cuda.CONVOLUTIONS,
        lambda a: cuda.convolution_class(a[1], a[2]),
    ),
    "token_shrink": (cuda.TOKENS, lambda a: cuda.token_class(a[0])),
    "token_shrink_backward": (cuda.TOKENS, lambda a: cuda.token_class(a[1])),
    "token_recover": (cuda.TOKENS, lambda a: cuda.token_class(a[0])),
    "token_recover_backward": (cuda.TOKENS, lambda a: cuda.token_class(a[0])),
    "token_recover_with_importance": (cuda.TOKENS, lambda a: cuda.token_class(a[0])),
    "token_recover_with_importance_backward": (cuda.TOKENS, lambda a: cuda.token_class(a[0])),
}


class Tuner:
    """Keeps rows up to date as calls are measured; a class that is not measured keeps its row.

    Args:
        rows: what the table has, changed in place.
        device: where to measure.
        time: measures a call.
    """

    def __init__(self, rows: Rows, device: torch.device, time: Timer) -> None:
        self.rows, self.device, self.time = rows, device, time
        self._tiles: dict[tuple[str, str], float] = {}  # the best share of the default's time
        self._backends: dict[tuple[str, str], float] = {}  # the worst share of Triton's time

    def tiles(self, call: Call) -> None:
        """Tile sizes and compiler options of Triton's kernels."""
        name, args = self._real(call)
        operator = partial(getattr(getattr(torch.ops, NAMESPACE), name), *args)
        with tuning.asking() as asked:
            want = operator()
        for kernel, shape_class in sorted(asked):
            tunable = tuning.KERNELS[kernel]
            if (kernel, shape_class) not in self._tiles:
                self._tiles[kernel, shape_class] = _GAIN
                self._put(kernel, shape_class, None)
            with tunable.trying():
                default = self.time(operator)
            for options in tunable.space:
                with tunable.trying(**options):
                    share = self._share(operator, want, default)
                if share < self._tiles[kernel, shape_class]:
                    self._tiles[kernel, shape_class] = share
                    self._put(kernel, shape_class, options)

    def twins(self, call: Call) -> None:
        """The CUDA kernels of a convolution or its weight gradient, among themselves."""
        name, args = call
        if name not in (cuda.CONVOLUTION, f"{cuda.CONVOLUTION}_backward"):
            return
        x, weight = _operands(name, args)
        shape_class, names = cuda.convolution_class(x, weight), _twins(name, x, weight, self.device)
        name, args = self._real(call)
        if name.endswith("_backward"):  # the input's is a convolution
            args = (*args[:4], False, True)
        if cuda.declines(args[0]):
            return
        plain = partial(getattr(kernels("cuda"), name), *args)
        want, default = plain(), self.time(plain)
        shares = {
            twin: self._share(partial(getattr(kernels("cuda"), twin), *args), want, default)
            for twin in names
        }
        best = min(shares, key=shares.__getitem__, default=None)
        for twin, share in shares.items():
            faster = twin == best and share < _GAIN
            self._put(twin, shape_class, {"faster": True} if faster else None)

    def backends(self, call: Call) -> None:
        """CUDA or Triton: the former where it is faster in every call of a class."""
        if call[0] not in _RIVALS:
            return
        row, classify = _RIVALS[call[0]]
        name, args = self._real(call)
        if cuda.declines(args[0]):
            return
        names = [name]
        if row == cuda.CONVOLUTIONS:
            names += _twins(name, *_operands(name, args), self.device)
        triton = partial(getattr(kernels("triton"), name), *args)
        want, default = triton(), self.time(triton)
        best = min(
            self._share(partial(getattr(kernels("cuda"), one), *args), want, default)
            for one in names
        )
        key = row, classify(args)
        self._backends[key] = max(best, self._backends.get(key, 0.0))
        self._put(*key, {"faster": True} if self._backends[key] < _GAIN else None)

    def _put(self, kernel: str, shape_class: str, options: tuning.Options | None) -> None:
        if options is not None:
            self.rows.setdefault(kernel, {})[shape_class] = options
        elif shape_class in self.rows.get(kernel, {}):
            del self.rows[kernel][shape_class]
            if not self.rows[kernel]:
                del self.rows[kernel]

    def _real(self, call: Call) -> Call:
        name, args = call
        return name, tuple(_real(a, self.device) for a in args)

    def _share(self, call: Callable[[], Any], want: Any, default: float) -> float:
        """The time of a call relative to the default's; infinite if it fails or is wrong."""
        try:
            right = _agree(_tensors(call()), _tensors(want))
        except (RuntimeError, TritonError):  # more shared memory than there is, say
            return float("inf")
        return self.time(call) / default if right else float("inf")


def _operands(name: str, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """A convolution's x and weight; its gradients are of them, given dy."""
    x, weight = args[1:3] if name.endswith("_backward") else args[:2]
    return x, weight


def _twins(name: str, x: Tensor, weight: Tensor, device: torch.device) -> list[str]:
    """Other kernels of a convolution or its gradients, as far as this GPU has them."""
    return [
        name.replace(cuda.CONVOLUTION, twin)
        for twin in cuda.TWINS
        if cuda.allows(twin, x, weight) and (twin != cuda.TMA or cuda.has_tma(device))
    ]


def _real(value: Any, device: torch.device) -> Any:
    """A tensor with numbers for a meta tensor; indices are the first ones, in order."""
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.int64:
        return torch.arange(value.shape[-1], device=device).expand(value.shape).contiguous()
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return made.uniform_(0.1, 1.0)  # positive, as importances have to be


def _agree(got: Iterable[Tensor], want: Iterable[Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=2e-2, atol=2e-2 * (b.abs().max().item() if b.numel() else 0))
        for a, b in zip(got, want, strict=True)
    )


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)
