"""Inputs in any memory layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.surroundings.models import KINDS, close, gradients_of, input_of, loss_of, model_of


def channels_last(x: Tensor) -> Tensor:
    three = x.dim() == 5
    return x.contiguous(memory_format=torch.channels_last_3d if three else torch.channels_last)


def scattered(x: Tensor) -> Tensor:
    """Every second number of a larger tensor, its axes the other way round."""
    room = x.new_empty([2 * size + 1 for size in reversed(x.shape)])
    view = room.permute(*reversed(range(x.dim())))[tuple(slice(1, None, 2) for _ in x.shape)]
    return view.copy_(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [channels_last, scattered])
def test_any_layout(kind: str, layout) -> None:
    model, x = model_of(kind).train(), input_of(kind)
    results = []
    for given in (x, layout(x)):
        assert torch.equal(given, x)
        leaf = given.detach().requires_grad_()
        model.zero_grad()
        y = model(leaf)
        loss_of(y).backward()
        gradients = [g.clone() for g in gradients_of(model).values() if g is not None]
        results.append((y, leaf.grad, gradients))
    (y, dx, dp), (z, dz, dq) = results
    close(z, y)
    close(dz, dx, error=1e-4)
    close(dq, dp, error=1e-4)


@pytest.mark.parametrize("kind", ["image", "light video"])
def test_a_model_in_channels_last(kind: str) -> None:
    """Its convolutions' weights then have other strides."""
    model, x = model_of(kind), input_of(kind)
    want = model(x)
    three = x.dim() == 5
    model.to(memory_format=torch.channels_last_3d if three else torch.channels_last)
    close(model(channels_last(x)), want)
