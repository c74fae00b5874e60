"""The TPAMI paper's throughput tables, the authors' samples a second on an A100 beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import uniformer
from torch import Tensor
from uniformer.throughput import PRESETS, Setting

import uniformer_kernels as uk
from uniformer_kernels.bench.graphs import Make, compare
from uniformer_kernels.triton.ahead import compile_all

from ..workloads import Workload
from .compile import planned
from .rows import OURS, row

DEVICE, PLAIN = "cuda", "plain PyTorch"
_BATCH = {2: 256, 3: 32}  # images, clips; the authors do not say how many
_ROUNDS = 5


def run() -> Iterator[dict[str, Any]]:
    compile_all(partial(planned, workloads()))
    for table, settings in PRESETS.items():
        for setting in settings:
            batch = _BATCH[len(setting.input_size)]
            found = row(f"{table}: {setting}", compare(rivals(setting, batch), rounds=_ROUNDS))
            rates = {name: batch / us * 1e6 for name, us in found["median_us"].items()}
            yield found | {"batch": batch, "per_second": rates, "a100": setting.per_second}
            torch.cuda.empty_cache()


def workloads() -> list[Workload]:
    """What is measured, to be planned."""
    return [
        Workload(
            setting.model,
            (_BATCH[len(setting.input_size)], 3, *setting.input_size),
            training=False,
            keywords=setting.keywords,
        )
        for settings in PRESETS.values()
        for setting in settings
    ]


def rivals(setting: Setting, batch: int) -> dict[str, Make]:
    """The same model in bfloat16, on the kernels and on the reference backend."""
    torch.manual_seed(0)
    model = uniformer.create_model(setting.model, **setting.keywords)
    model.to(DEVICE, torch.bfloat16).eval()
    last = torch.channels_last if len(setting.input_size) == 2 else torch.channels_last_3d
    shape = (batch, 3, *setting.input_size)

    @torch.inference_mode()
    def plain(x: Tensor) -> Tensor:
        with uk.use_backend("reference"):
            return model(x)

    def make(run: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        x = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).to(memory_format=last)
        return lambda: run(x)

    runs = {OURS: torch.inference_mode()(model), PLAIN: plain}
    return {name: lambda run=run: make(run) for name, run in runs.items()}
