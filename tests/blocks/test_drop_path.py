"""Stochastic depth: how often, by how much, and what shares a draw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from uniformer_kernels import blocks
from uniformer_kernels.blocks.residual import add_branch

from . import plain

RATE, KEEP, BATCH = 0.3, 0.7, 4000
SIGMA = (RATE * KEEP / BATCH) ** 0.5
"""Standard deviation of a frequency over the batch."""


def ones(like: Tensor, *, residual: Tensor | None = None) -> Tensor:
    return torch.ones_like(like) if residual is None else residual + 1


def test_a_sample_keeps_all_of_a_branch_or_none() -> None:
    x = torch.zeros(BATCH, 2, 3, dtype=torch.float64)
    y = add_branch(x, RATE, ones, x)
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    kept = y[:, 0, 0] != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / KEEP))
    assert abs(kept.double().mean() - KEEP) < 5 * SIGMA


def test_no_rate_leaves_the_sum_to_the_operator() -> None:
    x = torch.randn(5, 2)
    assert torch.equal(add_branch(x, 0.0, ones, x), x + 1)


def test_the_gradient_of_a_dropped_branch_is_zero() -> None:
    x = torch.zeros(64, 3, requires_grad=True)
    branch = torch.ones(64, 3, requires_grad=True)
    y = add_branch(x, 0.5, lambda b: b, branch)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(branch.grad, y.detach())
    assert set(branch.grad.unique().tolist()) == {0.0, 2.0}


def constant(layer: nn.Module, value: float) -> None:
    """A branch that ends in this layer adds ``value``."""
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, value)


@pytest.mark.parametrize("kind", ["local", "global"])
def test_the_branches_of_a_block_draw_on_their_own(kind: str) -> None:
    modules = plain.local_modules(2, 3) if kind == "local" else plain.global_modules(2, 3)
    constant(modules["dpe"], 0.0)
    constant(modules["pw2" if kind == "local" else "proj"], 1.0)
    constant(modules["fc2"], 10.0)
    x = torch.zeros(BATCH, 1, 1, 2, 2, dtype=torch.float64)
    options = plain.parameters(modules.eval()) | {"drop_path": RATE}
    if kind == "local":
        y = blocks.local_block(x, **options)
    else:
        y = blocks.global_block(x, **options, num_heads=1)
    assert torch.equal(y, y[:, :1, :1, :1, :1].expand_as(y))
    outcome = (y[:, 0, 0, 0, 0] * KEEP).round().long()
    expected = {0: RATE * RATE, 1: KEEP * RATE, 10: RATE * KEEP, 11: KEEP * KEEP}
    assert set(outcome.tolist()) == set(expected)
    for value, probability in expected.items():
        frequency = (outcome == value).double().mean().item()
        sigma = (probability * (1 - probability) / BATCH) ** 0.5
        assert abs(frequency - probability) < 5 * sigma


def test_the_divided_block_draws_per_position_per_frame_and_per_sample() -> None:
    T, H, W = 3, 2, 3
    modules = plain.divided_modules(2)
    for name in ("dpe", "qkv"):
        constant(modules[name], 0.0)
    for name in ("t_norm", "norm1"):
        modules[name] = nn.LayerNorm(2, eps=1e-12).double()
    # The temporal branch adds ±1 to a position, which the spatial attention averages in a frame.
    nn.init.zeros_(modules["t_proj"].weight)
    modules["t_proj"].bias.data = torch.tensor([1.0, -1.0], dtype=torch.float64)
    nn.init.eye_(modules["qkv"].weight[4:])
    nn.init.eye_(modules["proj"].weight)
    nn.init.zeros_(modules["proj"].bias)
    constant(modules["fc2"], 100.0)
    x = torch.zeros(BATCH, T, H, W, 2, dtype=torch.float64)
    y = blocks.divided_block(x, **plain.parameters(modules), num_heads=1, drop_path=RATE)

    assert torch.equal(y, y[:, :, :1, :1].expand_as(y))  # the average of a frame
    y = y[:, :, 0, 0, 0]
    feed_forward = (y * KEEP / 100).round()  # one draw per sample
    assert torch.equal(feed_forward, feed_forward[:, :1].expand_as(feed_forward))
    assert abs(feed_forward[:, 0].mean() - KEEP) < 5 * SIGMA

    average = (y - feed_forward * 100 / KEEP) * KEEP * H * W
    positions = average.round()  # how many kept the temporal branch; 0 where the frame lost it
    torch.testing.assert_close(average, positions, rtol=0, atol=1e-6)
    # Frames that kept theirs show the same positions: the temporal draws do not depend on time.
    most = positions.amax(1, keepdim=True)
    assert ((positions == most) | (positions == 0)).all()
    assert set(positions.unique().tolist()) == set(range(H * W + 1))
    some = positions > 0
    assert abs(some.double().mean() - KEEP) < 5 * SIGMA  # hardly ever are all positions dropped
    assert ((some.sum(1) > 0) & (some.sum(1) < T)).any()  # frames draw on their own
    assert abs(most[most > 0].mean() - KEEP * H * W) < 0.1
