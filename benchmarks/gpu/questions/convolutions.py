"""Depthwise convolutions: the rival to beat, and how near our kernels are to what they could."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from uniformer_kernels.bench.graphs import Make, compare
from uniformer_kernels.bench.timing import Samples

from .. import operators
from ..ceilings import full_speed
from ..rows import row
from .rivals import BATCH, ROUNDS, Rows, faster

CUDNN, NATIVE = "cuDNN, channels-last", "native, channels-first"
DENSE, FMA, TOEPLITZ = "dense, channels-last", "CUDA C++", "CUDA C++, tensor cores"
_DEVICE = "cuda"
_PASSES = {  # what aten::convolution_backward is asked for
    "forward": None,
    "input gradient": [True, False, False],
    "weight gradient": [False, True, False],
}
_ISSUE_BOUND = {5: 1.18, 3: 0.28}  # clocks an SM takes for an output, by the FMA kernel's SASS


def _shape(k: int, grid: tuple[int, ...], dtype: str) -> str:
    return f"depthwise k{k} {'×'.join(map(str, grid))} {dtype}"


def _convolution(
    k: int, shape: tuple[int, ...], dtype: torch.dtype, layout: str, mask: list[bool] | None
) -> Make:
    """One pass of PyTorch's own depthwise convolution."""

    def make() -> Callable[[], object]:
        C, new = shape[-1], partial(torch.randn, device=_DEVICE, dtype=dtype)
        x, dy = (new(shape).movedim(-1, 1) for _ in range(2))
        if layout == NATIVE:
            x, dy = x.contiguous(), dy.contiguous()
        weight, fixed = new(C, 1, k, k, k), ([1] * 3, [k // 2] * 3, [1] * 3, False, [0] * 3, C)
        if mask is None:
            return lambda: torch.ops.aten.convolution(x, weight, None, *fixed)
        return lambda: torch.ops.aten.convolution_backward(dy, x, weight, [C], *fixed, mask)

    return make


def baselines() -> Iterator[dict[str, Any]]:
    for dtype, kind in operators.DTYPES.items():
        for k, *grid in operators.DEPTHWISE:
            for pass_, mask in _PASSES.items():
                shape = (BATCH, *grid)
                rivals = {
                    layout: _convolution(k, shape, kind, layout, mask) for layout in (CUDNN, NATIVE)
                }
                yield row(
                    f"{_shape(k, tuple(grid), dtype)}, {pass_}", compare(rivals, rounds=ROUNDS)
                )
                torch.cuda.empty_cache()


def decide_baselines(rows: Rows) -> str:
    wins = Counter(
        (pass_, min(found["median_us"], key=found["median_us"].get))
        for found in rows
        for pass_ in _PASSES
        if found["what"].endswith(pass_) and found["median_us"]
    )
    each = (f"{pass_}: {layout} {count}" for (pass_, layout), count in sorted(wins.items()))
    return f"the rival to beat, in so many shapes: {'; '.join(each)}"


def depthwise(
    names: tuple[str, ...], taps: tuple[int, ...], dtype: str = "bf16", *, backward: bool = False
) -> Iterator[dict[str, Any]]:
    """These rivals at every shape with so many taps that all of them take."""
    for k, *grid in operators.DEPTHWISE:
        makes = operators.depthwise(k, (BATCH, *grid), dtype, backward=backward)
        if k not in taps or not makes.keys() >= set(names):
            continue
        pass_ = "forward + gradients" if backward else "forward"
        results = compare({name: makes[name] for name in names}, rounds=ROUNDS)
        yield row(f"{_shape(k, tuple(grid), dtype)}, {pass_}", results)
        torch.cuda.empty_cache()


def clocks() -> Iterator[dict[str, Any]]:
    """Of the FMA kernel: what an SM takes for an output, in its clocks at full speed."""
    processors, hertz = torch.cuda.get_device_properties(0).multi_processor_count, full_speed()
    for found in depthwise((FMA,), (3, 5)):
        k, grid = found["what"].split()[1:3]
        outputs = BATCH * torch.Size(map(int, grid.split("×"))).numel()
        took = found["median_us"].get(FMA)
        each = took and took * 1e-6 * hertz * processors / outputs
        yield found | {"taps": int(k[1:]), "clocks_per_output": each}


def decide_clocks(rows: Rows) -> str:
    parts = []
    for taps, bound in _ISSUE_BOUND.items():
        found = [r["clocks_per_output"] for r in rows if r["taps"] == taps]
        found = [each for each in found if each]
        if found:
            share = bound / min(found)
            verdict = "as designed" if share > 0.7 else "stalls are to be found with ncu"
            parts.append(f"k{taps} {min(found):.2f} clk/out of {bound} ({share:.0%}): {verdict}")
    return "; ".join(parts) or "the kernel did not run"


def weight_gradients() -> Iterator[dict[str, Any]]:
    backward = torch.ops.uniformer_kernels.depthwise_conv3d_backward

    def ours(k: int, shape: tuple[int, ...]) -> Callable[[], Tensor]:
        new = partial(torch.randn, device=_DEVICE, dtype=torch.bfloat16)
        dy, x, weight = new(shape), new(shape), new(shape[-1], 1, k, k, k)
        return lambda: backward(dy, x, weight, False, False, True)[1]

    for k, *grid in operators.DEPTHWISE:
        shape = (BATCH, *grid)
        native = _convolution(k, shape, torch.bfloat16, NATIVE, _PASSES["weight gradient"])
        rivals = {FMA: partial(ours, k, shape), NATIVE: native}
        results = compare(rivals, rounds=ROUNDS)
        same = isinstance(results[FMA], Samples) and repeats(ours(k, shape))
        what = f"{_shape(k, tuple(grid), 'bf16')}, weight gradient"
        yield row(what, results, bitwise_repeatable=same)
        torch.cuda.empty_cache()


def repeats(call: Callable[[], Tensor], times: int = 10) -> bool:
    """Whether all results are the same, bit for bit."""
    first = call()
    return all(torch.equal(first, call()) for _ in range(times - 1))


def decide_weight_gradients(rows: Rows) -> str:
    steady = sum(found["bitwise_repeatable"] for found in rows)
    return f"{faster(rows, NATIVE, FMA)}; bitwise the same in {steady} of {len(rows)}"
