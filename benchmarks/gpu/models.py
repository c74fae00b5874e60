"""Whole models against the official way of running them and the best of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uniformer_kernels.bench.graphs import Make, compare
from uniformer_kernels.bench.timing import Samples

from ..memory import saved_bytes
from ..models import SDPA, loss, small, xxs
from .rows import row

COMPILED = f"compiled, {SDPA}"


def on_gpu(modules: dict[str, nn.Module], clips: Tensor) -> tuple[dict[str, nn.Module], Tensor]:
    """In bfloat16."""
    moved = {name: m.to("cuda", torch.bfloat16) for name, m in modules.items()}
    return moved, clips.to("cuda", torch.bfloat16)


def compiled(module: nn.Module) -> Callable[..., Any]:
    """For the shapes it is called with: a second batch size would give it dynamic ones."""
    return torch.compile(module, dynamic=False)


def layout(name: str, clips: Tensor) -> Tensor:
    last = "channels-last" in name
    return clips.to(memory_format=torch.channels_last_3d) if last else clips


def inference(modules: dict[str, Callable[[Tensor], Any]], clips: Tensor) -> dict[str, Make]:
    def make(name: str) -> Callable[[], object]:
        run, x = torch.inference_mode()(modules[name]), layout(name, clips)
        return lambda: run(x)

    return {name: lambda name=name: make(name) for name in modules}


def training(modules: dict[str, nn.Module], clips: Tensor) -> dict[str, Make]:
    """Forward, loss, every gradient; the optimizer is the same for all and left out."""
    label = torch.arange(len(clips), device="cuda")

    def make(name: str) -> Callable[[], object]:
        run, x = modules[name], layout(name, clips)

        def step() -> None:
            run.zero_grad()
            loss(run(x), label).backward()

        return step

    return {name: lambda name=name: make(name) for name in modules}


@dataclass(frozen=True)
class Family:
    """A model and its rivals, the last of which is the best of PyTorch; compiled it is one more."""

    name: str
    build: Callable[[int], tuple[dict[str, nn.Module], Tensor]]
    batches: tuple[int, ...]  # samples of an inference; the last also of a training step


FIRST = [
    Family("UniFormer-S 16×224", small, (1, 16, 32)),
    Family("UniFormer-XXS 16×160", xxs, (1, 16)),
]


def peak(call: Callable[[], object]) -> int:
    """Bytes a call allocates at its peak, over what is there before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def passes(family: Family) -> Iterator[tuple[Family, int, bool]]:
    """Of a family: its samples, and whether they are trained on."""
    *_, largest = family.batches
    yield from ((family, batch, False) for batch in family.batches)
    yield family, largest, True


def compile_rival(family: Family, batch: int, trains: bool) -> None:
    """Leave what PyTorch's compiler makes of a pass in its cache on disk: a minute's work."""
    modules, clips = on_gpu(*family.build(batch))
    *_, best = modules
    rival = {best: compiled(modules[best].train(trains))}
    (training if trains else inference)(rival, clips)[best]()()
    torch.cuda.synchronize()


def measure(family: Family) -> Iterator[dict[str, Any]]:
    """Inference of one sample and of many, as a graph and from Python, and a training step."""
    for batch in family.batches:
        modules, clips = on_gpu(*family.build(batch))
        best = list(modules)[-1]
        evaluated = {name: module.eval() for name, module in modules.items()}
        makes = inference(evaluated | {f"compiled, {best}": compiled(modules[best])}, clips)
        for graph in (True, False):
            results = compare(makes, graph=graph)
            how = "as a graph" if graph else "from Python"
            what = f"{family.name} inference, batch {batch} bf16, {how}"
            peaks = {} if graph else {name: peak(makes[name]()) for name in ran(results)}
            yield row(what, results, peak_bytes=peaks)
        torch.cuda.empty_cache()
    modules = {name: module.train() for name, module in modules.items()}
    makes = training(modules | {f"compiled, {best}": compiled(modules[best])}, clips)
    results = compare(makes, rounds=10, graph=False)
    peaks = {name: peak(makes[name]()) for name in ran(results)}
    saved = {
        name: saved_bytes(lambda m=m, name=name: m(layout(name, clips)), m.parameters())
        for name, m in modules.items()
        if name in ran(results)
    }
    what = f"{family.name} training step, batch {batch} bf16"
    yield row(what, results, saved_bytes=saved, peak_bytes=peaks)
    torch.cuda.empty_cache()


def ran(results: dict[str, Samples | str]) -> list[str]:
    """The rivals that could."""
    return [name for name, result in results.items() if isinstance(result, Samples)]


def run() -> Iterator[dict[str, Any]]:
    for family in FIRST:
        yield from measure(family)
