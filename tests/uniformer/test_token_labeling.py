"""Token labeling: sizes, mixed tokens, the two heads, the loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import uniformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from uniformer.engine import token_labeling_loss
from uniformer.models.token_labeling import random_box, swap

from uniformer_kernels import use_backend


def small(name: str = "uniformer_small_tl", **keywords: Any) -> nn.Module:
    return uniformer.create_model(name, **{"depths": (1, 1, 1, 1), "num_classes": 7, **keywords})


@pytest.mark.parametrize(
    ("name", "parameters", "entries", "giga_macs", "giga_macs_384", "heads"),
    [
        ("uniformer_small_tl", 22_058_256, 333, 3.66, 11.91, (10, 16)),
        ("uniformer_small_dim64_tl", 22_058_256, 333, 3.66, 11.91, (5, 8)),
        ("uniformer_small_plus_tl", 24_545_552, 388, 4.23, 13.72, (10, 16)),
        ("uniformer_small_plus_dim64_tl", 24_545_552, 388, 4.23, 13.72, (5, 8)),
        ("uniformer_base_tl", 50_289_552, 689, 8.27, 27.21, (10, 16)),
        ("uniformer_base_dim64_tl", 50_289_552, 689, 8.27, 27.21, (5, 8)),
        ("uniformer_large_ls_tl", 100_103_888, 881, 19.71, 62.76, (7, 10)),
    ],
)
def test_sizes(
    name: str,
    parameters: int,
    entries: int,
    giga_macs: float,
    giga_macs_384: float,
    heads: tuple[int, int],
) -> None:
    with torch.device("meta"):
        model = uniformer.create_model(name).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries
    assert (model.blocks3[0].num_heads, model.blocks4[0].num_heads) == heads
    for size, expected in ((224, giga_macs), (384, giga_macs_384)):
        with use_backend("reference"), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size, device="meta"))
        assert round(counter.get_total_flops() / 2e9, 2) == expected


def test_layer_scales_of_the_large_model() -> None:
    with torch.device("meta"):
        model = uniformer.create_model("uniformer_large_ls_tl")
    shapes = {k: tuple(p.shape) for k, p in model.named_parameters() if k.endswith("gamma_1")}
    assert len(shapes) == 5 + 10 + 24 + 7
    assert shapes["blocks1.0.gamma_1"] == (1, 128, 1, 1)
    assert shapes["blocks4.0.gamma_1"] == (640,)
    local = small(local_layer_scale=0.5).blocks1[0]
    assert (local.gamma_1 == 0.5).all()
    assert (local.gamma_2 == 0.5).all()


# Heads -------------------------------------------------------------------------------------------


def test_evaluation_adds_half_of_the_largest_token() -> None:
    model = small().eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = model.forward_features(x)
        tokens = features.flatten(1, 3)
        pooled = F.linear(tokens.mean(1), model.head.weight, model.head.bias)
        each = F.linear(tokens, model.aux_head.weight, model.aux_head.bias)
        torch.testing.assert_close(model(x), pooled + 0.5 * each.amax(1))


@pytest.mark.parametrize("name", ["uniformer_small_tl", "uniformer_small_plus_tl"])
def test_training_returns_the_logits_of_samples_and_tokens(name: str) -> None:
    model = small(name)
    logits, tokens, box = model(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 7)
    assert tokens.shape == (2, 6, 7)
    assert box == (0, 0, 0, 0)
    # The mean of the tokens' features, were both heads the same.
    model.aux_head = model.head
    logits, tokens, _ = model(torch.randn(2, 3, 64, 96))
    torch.testing.assert_close(logits, tokens.mean(1))


def test_without_heads_the_pooled_features_come_out() -> None:
    model = small(num_classes=0).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), model.forward_features(x).mean((1, 2, 3)))
    assert not [key for key in model.state_dict() if "head" in key]


# Mixing ------------------------------------------------------------------------------------------


def test_swapping_twice_is_nothing() -> None:
    x = torch.randn(3, 1, 5, 6, 2)
    box = (1, 2, 4, 6)
    y = swap(x, box)
    inside = torch.zeros(5, 6, dtype=torch.bool)
    inside[1:4, 2:6] = True
    assert torch.equal(y[:, 0, inside], x.flip(0)[:, 0, inside])
    assert torch.equal(y[:, 0, ~inside], x[:, 0, ~inside])
    assert torch.equal(swap(y, box), x)
    assert swap(x, (2, 2, 2, 5)) is x


def test_boxes_are_torch_s_and_fit_the_grid() -> None:
    torch.manual_seed(3)
    boxes = [random_box(56, 40) for _ in range(2000)]
    torch.manual_seed(3)
    assert [random_box(56, 40) for _ in range(5)] == boxes[:5]
    areas = []
    for top, left, bottom, right in boxes:
        assert 0 <= top <= bottom <= 56
        assert 0 <= left <= right <= 40
        assert bottom - top <= 56
        areas.append((bottom - top) * (right - left) / (56 * 40))
    # Sides s of the grid's, s² uniform; the centre anywhere cuts a side to s - s²/4 of it.
    expected = 1 / 2 - 2 / 5 / 2 + 1 / 3 / 16
    assert sum(areas) / len(areas) == pytest.approx(expected, abs=0.04)


def test_every_token_stands_with_the_sample_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks that do nothing a token depends on its own patch only."""
    model = small(mix_token=True)
    for stage in (model.blocks1, model.blocks2, model.blocks3, model.blocks4):
        stage[0] = nn.Identity()
    model.norm.eval()
    monkeypatch.setattr("uniformer.models.token_labeling.random_box", lambda *_: (8, 16, 24, 30))
    x = torch.randn(3, 3, 128, 128)
    mixed, tokens, box = model(x)
    assert box == (1, 2, 3, 3)  # of 4 x 4
    model.mix_token = False
    model.norm.eval()
    plain, expected, _ = model(x)
    # 16 to 24 of the columns is a whole token; 24 to 30 is a part of one, and stays mixed.
    whole = torch.ones(4, 4, dtype=torch.bool)
    whole[1:3, 3] = False
    whole = whole.flatten()
    torch.testing.assert_close(tokens[:, whole], expected[:, whole])
    # The middle sample is swapped with itself.
    torch.testing.assert_close(tokens[1], expected[1])
    torch.testing.assert_close(mixed[1], plain[1])
    assert not torch.isclose(tokens[0, ~whole], expected[0, ~whole]).any(1).all()
    assert not torch.allclose(mixed[0], plain[0])


def test_mixing_is_for_training_and_trains() -> None:
    model = small(mix_token=True)
    x, target = torch.randn(4, 3, 64, 64), torch.randn(4, 7).softmax(1)
    token_labeling_loss(model(x), target).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))


# Loss --------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, target: Tensor) -> float:
    """Of one row, from its definition."""
    total = math.log(sum(math.exp(value) for value in logits.tolist()))
    pairs = zip(logits.tolist(), target.tolist(), strict=True)
    return sum(share * (total - value) for value, share in pairs)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (0, 1, 2, 2), (0, 0, 2, 2)])
@pytest.mark.parametrize("dense_target", [True, False])
@pytest.mark.parametrize("ground_truth", [True, False])
def test_loss_by_hand(box: tuple[int, ...], dense_target: bool, ground_truth: bool) -> None:
    B, N, classes = 3, 4, 5
    logits = torch.randn(B, classes, dtype=torch.float64)
    tokens = torch.randn(B, N, classes, dtype=torch.float64)
    target = torch.randn(B, classes, 2 + N, dtype=torch.float64).softmax(1)
    target[0, :, 0] = target[0, :, 1].square()  # the same first class
    target[1, :, 0] = target[1, :, 1].roll(1)  # another
    labels = target[..., 1].clone()
    if ground_truth and dense_target:
        for b in range(B):
            share = 0.5 if target[b, :, 0].argmax() == target[b, :, 1].argmax() else 0.9
            labels[b] = share * target[b, :, 1] + (1 - share) * target[b, :, 0]
    swapped = (box[2] - box[0]) * (box[3] - box[1]) / N
    whole = losses = 0.0
    for b in range(B):
        mixed = (1 - swapped) * labels[b] + swapped * labels[B - 1 - b]
        whole += cross_entropy(logits[b], mixed) / B
        for n in range(N):
            own = target[b, :, 2 + n] if dense_target else target[b, :, 1]
            losses += cross_entropy(tokens[b, n], own) / (B * N)
    got = token_labeling_loss(
        (logits, tokens, box),
        target if dense_target else target[..., 1],
        cls_weight=0.7,
        dense_weight=0.4,
        ground_truth=ground_truth,
    )
    assert got.item() == pytest.approx(0.7 * whole + 0.4 * losses)


def test_both_losses_weigh_one() -> None:
    outputs = torch.zeros(2, 10), torch.zeros(2, 3, 10), (0, 0, 0, 0)
    loss = token_labeling_loss(outputs, torch.full((2, 10), 0.1))
    assert loss.item() == pytest.approx(2 * math.log(10))


def test_the_loss_is_in_the_targets_precision() -> None:
    outputs = torch.zeros(2, 10).bfloat16(), torch.zeros(2, 3, 10).bfloat16(), (0, 0, 0, 0)
    loss = token_labeling_loss(outputs, torch.full((2, 10), 0.1))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2 * math.log(10))


@pytest.mark.parametrize("shape", [(2,), (2, 9), (3, 10), (2, 10, 4), (2, 10, 5, 1)])
def test_refuses_a_target_that_does_not_fit(shape: tuple[int, ...]) -> None:
    outputs = torch.zeros(2, 10), torch.zeros(2, 3, 10), (0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"target: expected \[2, 10\] or \[2, 10, 5\], got \["):
        token_labeling_loss(outputs, torch.zeros(shape))
