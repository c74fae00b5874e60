"""Mixed clips and labels against values worked out by hand; shares with their distribution."""

from __future__ import annotations

import pytest
import torch
from uniformer.data import Mixup
from uniformer.data.mixup import _beta, _box


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _numbered(B: int) -> torch.Tensor:
    """Clips of one value each: 0, 1, 2, ..."""
    return torch.arange(B, dtype=torch.float32)[:, None, None, None, None].expand(B, 3, 2, 8, 10)


def test_smoothed_labels() -> None:
    targets = Mixup(4).smooth(torch.tensor([2, 0]))
    expected = [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]
    torch.testing.assert_close(targets, torch.tensor(expected))


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_with_the_reversed_batch(seed: int) -> None:
    clips = _numbered(3)
    mixed, targets = Mixup(3, cutmix=0, smoothing=0)(clips, torch.arange(3), _seeded(seed))
    share = targets[0, 0].item()
    assert 0 < share < 1
    values = torch.tensor([2 * (1 - share), 1, 2 * share])
    torch.testing.assert_close(mixed, values[:, None, None, None, None].expand_as(clips))
    expected = [[share, 0, 1 - share], [0, 1, 0], [1 - share, 0, share]]
    torch.testing.assert_close(targets, torch.tensor(expected))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_swaps_a_box_of_all_frames(seed: int) -> None:
    mixed, targets = Mixup(2, mixup=0, smoothing=0)(_numbered(2), torch.arange(2), _seeded(seed))
    box = mixed[0] == 1
    assert torch.equal(box, mixed[1] == 0)
    assert (box == box[0, 0]).all()
    rows, columns = box[0, 0].any(1), box[0, 0].any(0)
    assert box[0, 0].sum() == rows.sum() * columns.sum()
    # The share is what is left, after clipping to the picture.
    torch.testing.assert_close(targets[0, 0], 1 - box[0, 0].float().mean())
    torch.testing.assert_close(targets[1], targets[0].flip(0))


def test_boxes_are_clipped_and_centred() -> None:
    boxes = torch.tensor([_box(8, 10, 0.75, _seeded(seed)) for seed in range(500)])
    top, bottom, left, right = boxes.T
    assert (top.min(), bottom.max(), left.min(), right.max()) == (0, 8, 0, 10)
    assert set((bottom - top).tolist()) == {2, 3, 4}  # half of 8, at the edges less
    assert set((right - left).tolist()) == {2, 3, 4}  # half of 10, 2 to both sides


def test_shares_are_beta() -> None:
    draws = torch.tensor([_beta(0.8, _seeded(seed)) for seed in range(4000)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(draws.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.006  # Beta(a, a)


def test_how_often() -> None:
    labels = torch.arange(2)
    kinds = {"left": 0, "cut": 0, "blended": 0}
    for seed in range(600):
        mix = Mixup(2, probability=0.5, switch=0.25)
        share, cut = mix._draw(_seeded(seed))
        kinds["left" if share == 1 else "cut" if cut else "blended"] += 1
    assert abs(kinds["left"] / 600 - 0.5) < 0.06
    assert abs(kinds["cut"] / 600 - 0.125) < 0.05
    clips = _numbered(2)
    for never in (Mixup(2, probability=0), Mixup(2, mixup=0, cutmix=0)):
        mixed, targets = never(clips, labels, _seeded(0))
        assert torch.equal(mixed, clips)
        torch.testing.assert_close(targets, torch.tensor([[0.95, 0.05], [0.05, 0.95]]))


def test_nothing_to_mix() -> None:
    clips, labels = torch.zeros(0, 3, 2, 8, 8), torch.zeros(0, dtype=torch.int64)
    mixed, targets = Mixup(5)(clips, labels, _seeded(0))
    assert mixed.shape == clips.shape
    assert targets.shape == (0, 5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_classes": 0}, "num_classes: expected at least 1, got 0"),
        ({"mixup": -1}, "mixup: expected at least 0, got -1"),
        ({"smoothing": 2}, "smoothing: expected 0 to 1, got 2"),
    ],
)
def test_bad_arguments(bad: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixup(**{"num_classes": 3} | bad)
    with pytest.raises(ValueError, match="labels: expected 0 <= label < 3, got 0 to 3"):
        Mixup(3)(torch.zeros(2, 3, 1, 4, 4), torch.tensor([0, 3]))
