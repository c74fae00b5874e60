"""What lies between kernels: launches of whole models, and from one kernel to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import uniformer_kernels as uk
from uniformer_kernels.bench.graphs import compare

from ...models import SDPA, small, xxs
from .. import operators, probes
from ..launches import kernels
from ..models import COMPILED, compiled, inference, on_gpu, ran
from ..rows import OURS, row
from .rivals import ROUNDS, Rows


def models() -> Iterator[dict[str, Any]]:
    for name, build in (("UniFormer-S 16×224", small), ("UniFormer-XXS 16×160", xxs)):
        for batch in (1, 32):
            modules, clips = on_gpu(*build(batch))
            modules = {key: module.eval() for key, module in modules.items()}
            if SDPA in modules:
                modules[COMPILED] = compiled(modules[SDPA])
            makes = inference(modules, clips)
            for graph in (False, True):
                how = "as a graph" if graph else "from Python"
                results = compare(makes, rounds=ROUNDS, graph=graph)
                counts = {key: kernels(makes[key]()) for key in ran(results)} if graph else {}
                yield row(f"{name} inference, batch {batch} bf16, {how}", results, kernels=counts)
            del modules, makes, clips
            torch.cuda.empty_cache()


def decide_models(rows: Rows) -> str:
    pairs = [
        (python["median_us"].get(OURS), graph["median_us"].get(OURS), python["what"])
        for python, graph in zip(rows[::2], rows[1::2], strict=False)  # the last may be cut off
    ]
    gains = [f"{what.split(',')[0]} {a / b:.1f}×" for a, b, what in pairs if a and b]
    return f"what a graph gains over calls from Python: {'; '.join(gains) or 'did not run'}"


def latencies() -> Iterator[dict[str, Any]]:
    for programmatic in (False, True):
        how = "programmatic" if programmatic else "plain"
        results = compare({OURS: probes.chain(programmatic)})
        yield row(f"{probes.LINKS} empty kernels, {how} launches", results, links=probes.LINKS)
    chain = operators.tokens(1, 800, 224)[OURS]
    yield row("token_shrink + token_recover 800×224, batch 1", compare({OURS: chain}))

    def norms() -> Callable[[], object]:
        x, weight, bias = (
            torch.randn(*s, device="cuda", dtype=torch.bfloat16)
            for s in ((402, 224), (224,), (224,))
        )
        return lambda: uk.layer_norm(x, weight, bias)

    yield row("layer_norm 402×224", compare({OURS: norms}))


def decide_latencies(rows: Rows) -> str:
    medians = [found["median_us"].get(OURS) for found in rows]
    if len(medians) < 4 or not all(medians):
        return "a chain did not run"
    plain, programmatic = (median / probes.LINKS for median in medians[:2])
    verdict = "are worth having" if programmatic < 0.7 * plain else "gain too little"
    return (
        f"{plain:.2f} µs from kernel to kernel in a graph, {programmatic:.2f} with programmatic "
        f"launches, which {verdict}; shrink + recover {medians[2]:.1f} µs, a norm {medians[3]:.1f}"
    )
