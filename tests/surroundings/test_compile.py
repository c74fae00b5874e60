"""torch.compile of whole models: one graph, compiled once for all batch sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.surroundings.models import (
    close,
    input_of,
    loss_of,
    model_of,
    same_gradients,
)

FEW = {"depths": (1, 0, 1, 0)}
"""A block of either kind: those of the other stages would be compiled alike."""


def batches(kind: str, *sizes: int) -> list[Tensor]:
    inputs = [input_of(kind, size) for size in sizes]
    for x in inputs:
        torch._dynamo.mark_dynamic(x, 0)
    return inputs


@pytest.mark.parametrize("kind", ["video", "light", "dense", "v2"])
def test_forward_is_compiled_once_for_every_batch(kind: str) -> None:
    torch.compiler.reset()
    model, counter = model_of(kind), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for x in batches(kind, 2, 3, 5):
            close(compiled(x), model(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", ["image", "light"])
def test_training_is_compiled_once_for_every_batch(kind: str) -> None:
    torch.compiler.reset()
    plain, counter = model_of(kind, **FEW).train(), CompileCounterWithBackend("aot_eager")
    model = copy.deepcopy(plain)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for x in batches(kind, 2, 3):
        for function, owner in ((compiled, model), (plain, plain)):
            owner.zero_grad()
            loss_of(function(x)).backward()
        same_gradients(model, plain)
        for got, buffer in zip(model.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(got, buffer)
    assert counter.frame_count == 1


def test_batches_of_unforeseen_sizes_cost_one_more_compilation() -> None:
    """PyTorch first takes a size for a constant; from its second on it is open."""
    torch.compiler.reset()
    model, counter = model_of("image", **FEW), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for batch in (2, 3, 4, 7):
            x = input_of("image", batch)
            close(compiled(x), model(x))
    assert counter.frame_count == 2


def test_inductor_trains() -> None:
    torch.compiler.reset()
    plain = model_of("image", **FEW).train()
    model = copy.deepcopy(plain)
    x = input_of("image")
    for function in (torch.compile(model, fullgraph=True), plain):
        loss_of(function(x)).backward()
    same_gradients(model, plain)
