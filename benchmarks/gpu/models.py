"""Whole models against the official way of running them and the best of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformer_kernels.bench.graphs import Make, compare

from ..agreement import CHANNELS_LAST
from ..memory import saved_bytes
from ..models import SDPA, small, xxs
from .rows import row

COMPILED = "compiled, SDPA + channels-last"


def on_gpu(modules: dict[str, nn.Module], clips: Tensor) -> tuple[dict[str, nn.Module], Tensor]:
    """In bfloat16."""
    moved = {name: m.to("cuda", torch.bfloat16) for name, m in modules.items()}
    return moved, clips.to("cuda", torch.bfloat16)


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


def loss(logits: Tensor | tuple[Tensor, Tensor], label: Tensor) -> Tensor:
    if isinstance(logits, Tensor):
        return F.cross_entropy(logits.float(), label)
    return sum(F.cross_entropy(one.float(), label) for one in logits) / 2


def run() -> Iterator[dict[str, Any]]:
    modules, clips = on_gpu(*small(16))
    best = modules.pop(SDPA)

    evaluated = {name: m.eval() for name, m in modules.items()}
    compiled = torch.compile(best.eval())
    for graph in (True, False):
        results = compare(
            inference(evaluated | {SDPA: best.eval(), COMPILED: compiled}, clips), graph=graph
        )
        how = "as a graph" if graph else "from Python"
        yield row(f"UniFormer-S 16×224 inference, batch 16 bf16, {how}", results)

    steps = {name: m.train() for name, m in modules.items()}
    best.train()
    compiled = torch.compile(best)
    makes = training(steps | {SDPA: best, COMPILED: compiled}, clips)
    results = compare(makes, rounds=10, graph=False)
    saved = {
        name: saved_bytes(lambda m=m, name=name: m(layout(name, clips)), m.parameters())
        for name, m in {**steps, SDPA: best}.items()
    }
    yield row("UniFormer-S 16×224 training step, batch 16 bf16", results, saved_bytes=saved)
    del modules, best, compiled, steps, evaluated, makes
    torch.cuda.empty_cache()

    modules, clips = on_gpu(*xxs(1))
    evaluated = {name: m.eval() for name, m in modules.items()}
    for graph in (True, False):
        results = compare(inference(evaluated, clips), graph=graph)
        how = "as a graph" if graph else "from Python"
        yield row(f"UniFormer-XXS 16×160 inference, batch 1 bf16, {how}", results)
    modules, clips = on_gpu(*xxs(16))
    modules.pop(CHANNELS_LAST)
    steps = {name: m.train() for name, m in modules.items()}
    results = compare(training(steps, clips), rounds=10, graph=False)
    yield row("UniFormer-XXS 16×160 training step, batch 16 bf16", results)
