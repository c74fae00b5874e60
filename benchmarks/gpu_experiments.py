"""Ten questions to a GPU whose answers decide how the kernels go on.

`make gpu STAGES=experiments`, or some of them, printed: `python -m benchmarks.gpu_experiments 3 4`.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import uniformer_kernels as uk
from uniformer_kernels.bench.graphs import Make, compare
from uniformer_kernels.bench.timing import Samples

from .gpu import operators, probes
from .gpu.launches import kernels
from .gpu.models import COMPILED, inference, on_gpu
from .gpu.rows import OURS, row
from .models import SDPA, small, xxs

Rows = list[dict[str, Any]]

CUDNN, NATIVE = "cuDNN, channels-last", "native, channels-first"
DENSE, FMA, TOEPLITZ = "dense, channels-last", "CUDA C++", "CUDA C++, tensor cores"
_DEVICE, _BATCH, _ROUNDS = "cuda", 16, 5
_PASSES = {  # what aten::convolution_backward is asked for
    "forward": None,
    "input gradient": [True, False, False],
    "weight gradient": [False, True, False],
}
_ISSUE_BOUND = {5: 1.18, 3: 0.28}  # clocks an SM takes for an output, by the FMA kernel's SASS
_TENSOR_PEAK = "matmul bfloat16"


@dataclass(frozen=True)
class Experiment:
    """A question, the rows that answer it, and what follows from them."""

    question: str
    measure: Callable[[], Iterator[dict[str, Any]]]
    decide: Callable[[Rows], str]


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


def _baselines() -> Iterator[dict[str, Any]]:
    for dtype, kind in operators.DTYPES.items():
        for k, *grid in operators.DEPTHWISE:
            for pass_, mask in _PASSES.items():
                shape = (_BATCH, *grid)
                rivals = {
                    layout: _convolution(k, shape, kind, layout, mask) for layout in (CUDNN, NATIVE)
                }
                yield row(
                    f"{_shape(k, tuple(grid), dtype)}, {pass_}", compare(rivals, rounds=_ROUNDS)
                )
                torch.cuda.empty_cache()


def _decide_baselines(rows: Rows) -> str:
    wins = Counter(
        (pass_, min(found["median_us"], key=found["median_us"].get))
        for found in rows
        for pass_ in _PASSES
        if found["what"].endswith(pass_) and found["median_us"]
    )
    each = (f"{pass_}: {layout} {count}" for (pass_, layout), count in sorted(wins.items()))
    return f"the rival to beat, in so many shapes: {'; '.join(each)}"


def _depthwise(
    names: tuple[str, ...], taps: tuple[int, ...], dtype: str = "bf16", *, backward: bool = False
) -> Iterator[dict[str, Any]]:
    """These rivals at every shape with so many taps that all of them take."""
    for k, *grid in operators.DEPTHWISE:
        makes = operators.depthwise(k, (_BATCH, *grid), dtype, backward=backward)
        if k not in taps or not makes.keys() >= set(names):
            continue
        pass_ = "forward + gradients" if backward else "forward"
        results = compare({name: makes[name] for name in names}, rounds=_ROUNDS)
        yield row(f"{_shape(k, tuple(grid), dtype)}, {pass_}", results)
        torch.cuda.empty_cache()


def _ratios(rows: Rows, theirs: str, ours: str) -> list[float]:
    pairs = ((found["median_us"].get(theirs), found["median_us"].get(ours)) for found in rows)
    return [a / b for a, b in pairs if a and b]


def _faster(rows: Rows, theirs: str, ours: str) -> str:
    ratios = _ratios(rows, theirs, ours)
    if not ratios:
        return f"{theirs} or {ours} did not run"
    faster = sum(ratio > 1 for ratio in ratios)
    span = f"{min(ratios):.2f} to {max(ratios):.2f}×"
    return f"{ours} is {span} as fast as {theirs}: it serves {faster} of {len(ratios)} cases"


def _clocks() -> Iterator[dict[str, Any]]:
    """Of the FMA kernel: what an SM takes for an output, in its clocks at full speed."""
    processors, hertz = torch.cuda.get_device_properties(0).multi_processor_count, _full_speed()
    for found in _depthwise((FMA,), (3, 5)):
        k, grid = found["what"].split()[1:3]
        outputs = _BATCH * torch.Size(map(int, grid.split("×"))).numel()
        took = found["median_us"].get(FMA)
        clocks = took and took * 1e-6 * hertz * processors / outputs
        yield found | {"taps": int(k[1:]), "clocks_per_output": clocks}


def _full_speed() -> float:
    """The clock of the processors at its fastest, in Hz."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    megahertz, *_ = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    return float(megahertz) * 1e6


def _decide_clocks(rows: Rows) -> str:
    parts = []
    for taps, bound in _ISSUE_BOUND.items():
        clocks = [r["clocks_per_output"] for r in rows if r["taps"] == taps]
        clocks = [c for c in clocks if c]
        if clocks:
            share = bound / min(clocks)
            verdict = "as designed" if share > 0.7 else "stalls are to be found with ncu"
            parts.append(f"k{taps} {min(clocks):.2f} clk/out of {bound} ({share:.0%}): {verdict}")
    return "; ".join(parts) or "the kernel did not run"


def _tensor_cores() -> Iterator[dict[str, Any]]:
    make, flops = probes.multiplying()
    a, b = (torch.randn(8192, 8192, device=_DEVICE, dtype=torch.bfloat16) for _ in range(2))
    yield row("mma.sync m16n8k16 from registers", compare({OURS: make}, graph=False), flops=flops)
    library = {OURS: lambda: lambda: a @ b}
    yield row(_TENSOR_PEAK, compare(library, graph=False), flops=2 * 8192**3)


def _decide_tensor_cores(rows: Rows) -> str:
    rates = {found["what"]: found.get("flop_per_s") for found in rows}
    registers, library = (rates.get(name) for name in (rows[0]["what"], _TENSOR_PEAK))
    if not registers or not library:
        return "the probe did not run"
    share = registers / library
    verdict = "pays" if share > 0.5 else "does not pay"
    return f"{registers / 1e12:.0f} TFLOP/s, {share:.0%} of a large matmul: Toeplitz {verdict}"


def _weight_gradients() -> Iterator[dict[str, Any]]:
    backward = torch.ops.uniformer_kernels.depthwise_conv3d_backward

    def ours(k: int, shape: tuple[int, ...]) -> Callable[[], Tensor]:
        new = partial(torch.randn, device=_DEVICE, dtype=torch.bfloat16)
        dy, x, weight = new(shape), new(shape), new(shape[-1], 1, k, k, k)
        return lambda: backward(dy, x, weight, False, False, True)[1]

    for k, *grid in operators.DEPTHWISE:
        shape = (_BATCH, *grid)
        native = _convolution(k, shape, torch.bfloat16, NATIVE, _PASSES["weight gradient"])
        rivals = {FMA: partial(ours, k, shape), NATIVE: native}
        results = compare(rivals, rounds=_ROUNDS)
        same = isinstance(results[FMA], Samples) and repeats(ours(k, shape))
        what = f"{_shape(k, tuple(grid), 'bf16')}, weight gradient"
        yield row(what, results, bitwise_repeatable=same)
        torch.cuda.empty_cache()


def repeats(call: Callable[[], Tensor], times: int = 10) -> bool:
    """Whether all results are the same, bit for bit."""
    first = call()
    return all(torch.equal(first, call()) for _ in range(times - 1))


def _decide_weight_gradients(rows: Rows) -> str:
    steady = sum(found["bitwise_repeatable"] for found in rows)
    return f"{_faster(rows, NATIVE, FMA)}; bitwise the same in {steady} of {len(rows)}"


def _attention() -> Iterator[dict[str, Any]]:
    for batch in (1, 16):
        for N in (392, 801, 1568, 3136):
            for heads, d in ((8, 28), (8, 32), (5, 64)):
                for backward in (False, True):
                    makes = operators.attention(batch, N, heads, d, "bf16", backward=backward)
                    pass_ = "forward + gradients" if backward else "forward"
                    what = f"attention {N} × {heads} × {d}, batch {batch} bf16, {pass_}"
                    yield row(what, compare(makes, rounds=_ROUNDS))
                    torch.cuda.empty_cache()


def _decide_attention(rows: Rows) -> str:
    behind = [found["what"] for found in rows if found.get("ratio", 1) < 0.9]
    if not behind:
        return "Triton's kernel serves all of them"
    return f"the library is to serve what Triton's kernel is 10 % behind in: {'; '.join(behind)}"


def _feed_forward() -> Iterator[dict[str, Any]]:
    for rows, C in operators.FEED_FORWARD[:2]:
        makes = operators.feed_forward(_BATCH * rows, C, "bf16", backward=False)
        yield row(f"feed-forward C = {C} bf16, forward", compare(makes))


def _models() -> Iterator[dict[str, Any]]:
    for name, build in (("UniFormer-S 16×224", small), ("UniFormer-XXS 16×160", xxs)):
        for batch in (1, 32):
            modules, clips = on_gpu(*build(batch))
            modules = {key: module.eval() for key, module in modules.items()}
            if SDPA in modules:
                modules[COMPILED] = torch.compile(modules[SDPA])
            makes = inference(modules, clips)
            for graph in (False, True):
                how = "as a graph" if graph else "from Python"
                results = compare(makes, rounds=_ROUNDS, graph=graph)
                counts = {key: kernels(make()) for key, make in makes.items()} if graph else {}
                yield row(f"{name} inference, batch {batch} bf16, {how}", results, kernels=counts)
            del modules, makes, clips
            torch.cuda.empty_cache()


def _decide_models(rows: Rows) -> str:
    pairs = [
        (python["median_us"].get(OURS), graph["median_us"].get(OURS), python["what"])
        for python, graph in zip(rows[::2], rows[1::2], strict=True)
    ]
    gains = [f"{what.split(',')[0]} {a / b:.1f}×" for a, b, what in pairs if a and b]
    return f"what a graph gains over calls from Python: {'; '.join(gains) or 'did not run'}"


def _latencies() -> Iterator[dict[str, Any]]:
    for programmatic in (False, True):
        how = "programmatic" if programmatic else "plain"
        results = compare({OURS: probes.chain(programmatic)})
        yield row(f"{probes.LINKS} empty kernels, {how} launches", results, links=probes.LINKS)
    chain = operators.tokens(1, 800, 224)[OURS]
    yield row("token_shrink + token_recover 800×224, batch 1", compare({OURS: chain}))

    def norms() -> Callable[[], object]:
        x, weight, bias = (
            torch.randn(*s, device=_DEVICE, dtype=torch.bfloat16)
            for s in ((402, 224), (224,), (224,))
        )
        return lambda: uk.layer_norm(x, weight, bias)

    yield row("layer_norm 402×224", compare({OURS: norms}))


def _decide_latencies(rows: Rows) -> str:
    medians = [found["median_us"].get(OURS) for found in rows]
    if not all(medians):
        return "a chain did not run"
    plain, programmatic = (median / probes.LINKS for median in medians[:2])
    verdict = "are worth having" if programmatic < 0.7 * plain else "gain too little"
    return (
        f"{plain:.2f} µs from kernel to kernel in a graph, {programmatic:.2f} with programmatic "
        f"launches, which {verdict}; shrink + recover {medians[2]:.1f} µs, a norm {medians[3]:.1f}"
    )


EXPERIMENTS = {
    1: Experiment(
        "PyTorch's depthwise convolution: cuDNN channels-last or native channels-first?",
        _baselines,
        _decide_baselines,
    ),
    2: Experiment(
        "Is a dense 64 to 64 convolution faster than cuDNN's depthwise one?",
        lambda: _depthwise((CUDNN, DENSE), (3, 5)),
        lambda rows: _faster(rows, CUDNN, DENSE),
    ),
    3: Experiment("How near is the FMA kernel to its issue bound?", _clocks, _decide_clocks),
    4: Experiment(
        "What does mma.sync reach of the tensor cores' peak, from registers?",
        _tensor_cores,
        _decide_tensor_cores,
    ),
    5: Experiment(
        "Five taps in 16 bits: tensor cores or FMA?",
        lambda: _depthwise((FMA, TOEPLITZ), (5,), backward=True),
        lambda rows: _faster(rows, FMA, TOEPLITZ),
    ),
    6: Experiment(
        "Weight gradients by partial sums: as fast as native ones, and repeatable?",
        _weight_gradients,
        _decide_weight_gradients,
    ),
    7: Experiment("Attention: Triton's kernel or a library's?", _attention, _decide_attention),
    8: Experiment(
        "Feed-forward of 64 and 128 channels: one kernel or cuBLASLt twice?",
        _feed_forward,
        lambda rows: _faster(rows, "cuBLASLt", OURS),
    ),
    9: Experiment(
        "Whole models from Python, compiled, as graphs: what do launches cost?",
        _models,
        _decide_models,
    ),
    10: Experiment(
        "From kernel to kernel in a graph: do programmatic launches pay?",
        _latencies,
        _decide_latencies,
    ),
}


def run(numbers: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """Their rows, each with its experiment's number."""
    for number in numbers or EXPERIMENTS:
        for found in EXPERIMENTS[number].measure():
            yield found | {"experiment": number}


def answers(rows: Rows) -> list[tuple[int, str, str]]:
    """Number, question, and what the rows decide."""
    found = {n: [r for r in rows if r.get("experiment") == n] for n in EXPERIMENTS}
    return [
        (n, e.question, e.decide(found[n]) if found[n] else "not measured")
        for n, e in EXPERIMENTS.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_experiments")
    parser.add_argument(
        "numbers", nargs="*", type=int, choices=EXPERIMENTS, metavar="number", help="1 to 10; all"
    )
    numbers = parser.parse_args().numbers
    if not torch.cuda.is_available():
        parser.error("expected a GPU that torch sees, found none")
    for number, question, answer in answers(list(run(numbers))):
        if number in (numbers or EXPERIMENTS):
            print(f"{number:2}. {question}\n    {answer}")


if __name__ == "__main__":
    main()
