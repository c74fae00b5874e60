"""Learning rate, groups of parameters, average, clipping, loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import uniformer
from torch import nn
from uniformer.engine.loss import classification_loss
from uniformer.engine.optimizer import average_of, clip_gradients, make_optimizer, param_groups
from uniformer.engine.schedule import learning_rate
from uniformer.engine.settings import Settings
from uniformer.engine.trainer import seed_of

from .fake import TINY


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 1e-6),
        (2.5, 1e-6 + (1e-3 - 1e-6) / 4),
        (10, 1e-3),
        (60, (1e-3 + 1e-6) / 2),
        (35, 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi / 4)) / 2),
        (110, 1e-6),
    ],
)
def test_learning_rate(epoch: float, expected: float) -> None:
    rates = {"epochs": 110, "warmup_epochs": 10, "lr": 1e-3, "warmup_lr": 1e-6, "min_lr": 1e-6}
    assert learning_rate(epoch, **rates) == pytest.approx(expected, rel=1e-12)


def test_learning_rate_without_or_of_nothing_but_a_rise() -> None:
    rates = {"lr": 1.0, "warmup_lr": 0.5, "min_lr": 0.25}
    assert learning_rate(0, epochs=4, warmup_epochs=0, **rates) == 1
    assert learning_rate(4, epochs=4, warmup_epochs=0, **rates) == pytest.approx(0.25)
    assert learning_rate(2, epochs=4, warmup_epochs=4, **rates) == 0.75
    assert learning_rate(4, epochs=4, warmup_epochs=4, **rates) == 1


def test_groups_of_a_model() -> None:
    model = uniformer.create_model("uniformer_video_xxs", num_classes=4, **TINY["keywords"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, still = param_groups(model, 0.05)
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.05, 0)
    assert {id(p) for group in (decaying, still) for p in group["params"]} == names.keys()
    spared = {names[id(p)] for p in still["params"]}
    assert "cls_token" in spared  # three axes, but named by no_weight_decay
    assert {"head.bias", "blocks1.0.norm1.weight", "norm_cls.bias"} <= spared
    kept = {names[id(p)] for p in decaying["params"]}
    assert {"head.weight", "blocks1.0.pos_embed.weight", "patch_embed2.proj.weight"} <= kept


def test_frozen_parameters_are_not_optimised() -> None:
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    (group,) = param_groups(model, 0.1)
    assert group["params"][0] is model.bias
    assert group["weight_decay"] == 0


def test_optimizer_is_adamw() -> None:
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    settings = Settings(model="", lr=0.1, weight_decay=0.5, betas=(0.8, 0.9), eps=1e-3)
    ours = make_optimizer(model, settings)
    plain = [
        torch.optim.AdamW([part], 0.1, (0.8, 0.9), 1e-3, decay, fused=False)
        for part, decay in ((twin.weight, 0.5), (twin.bias, 0.0))
    ]
    for _ in range(3):
        x = torch.randn(4, 3)
        for net in (model, twin):
            net.zero_grad()
            net(x).square().sum().backward()
        for optimizer in (ours, *plain):
            optimizer.step()
    torch.testing.assert_close(model.weight, twin.weight)
    torch.testing.assert_close(model.bias, twin.bias)


def test_average() -> None:
    model = nn.BatchNorm1d(2)
    average = average_of(model, 0.75)
    weights, means = [], []
    for _ in range(4):
        with torch.no_grad():
            model.weight += torch.rand(2)
        model(torch.randn(5, 2))
        average.update_parameters(model)
        weights.append(model.weight.detach().clone())
        means.append(model.running_mean.clone())
    weight, mean = weights[0], means[0]
    for new_weight, new_mean in zip(weights[1:], means[1:], strict=True):
        weight, mean = 0.75 * weight + 0.25 * new_weight, 0.75 * mean + 0.25 * new_mean
    torch.testing.assert_close(average.module.weight, weight)
    torch.testing.assert_close(average.module.running_mean, mean)
    assert average.module.num_batches_tracked == 4
    assert not average.module.weight.requires_grad


def test_clipping() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(model, None) is None
    assert clip_gradients(model, 10.0) == 5
    assert model.weight.grad.tolist() == [[3, 4]]
    assert clip_gradients(model, 1.0) == 5
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]))


def test_loss_of_one_head_and_of_two() -> None:
    logits, other = torch.randn(3, 5), torch.randn(3, 5)
    targets = torch.rand(3, 5).softmax(1)
    by_hand = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(classification_loss(logits, targets), by_hand)
    both = 0.5 * F.cross_entropy(logits, targets) + 0.5 * F.cross_entropy(other, targets)
    torch.testing.assert_close(classification_loss((logits, other), targets), both)
    half = classification_loss(logits.bfloat16(), targets)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, by_hand, rtol=1e-2, atol=1e-2)
    assert classification_loss(logits.double(), targets).dtype == torch.float64


def test_seeds_differ() -> None:
    seeds = {seed_of(*key) for key in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0)]}
    assert len(seeds) == 7
    assert seed_of(1, 2, 3) == seed_of(1, 2, 3)
