"""Random crops, flips and boxes: inside the picture, as often as said, the same in all frames."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from uniformer.data import Augment
from uniformer.data.augment import (
    _crop_box,
    random_erase,
    random_resized_crop,
    random_scale_crop,
)
from uniformer.data.transforms import normalise

SIDES = st.integers(1, 90)
SHAPE = {"rand_augment": None, "flip": 0, "erase": 0}


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _frames(T: int = 2, H: int = 30, W: int = 40) -> Tensor:
    return torch.randint(0, 256, (T, H, W, 3), dtype=torch.uint8)


@given(SIDES, SIDES)
def test_crop_boxes_are_inside_and_of_the_right_shape(H: int, W: int) -> None:
    for seed in range(20):
        top, left, height, width = _crop_box(H, W, (0.08, 1), (0.75, 4 / 3), _seeded(seed))
        assert 0 <= top <= top + height <= H
        assert 0 <= left <= left + width <= W
        assert height >= 1
        assert width >= 1
        # A side is off by half a pixel at most, from rounding.
        assert (width + 0.5) / max(height - 0.5, 1e-9) >= 0.75
        assert (width - 0.5) / (height + 0.5) <= 4 / 3


def test_crop_boxes_cover_what_they_shall() -> None:
    boxes = [_crop_box(350, 350, (0.08, 1), (0.75, 4 / 3), _seeded(seed)) for seed in range(2000)]
    areas = torch.tensor([height * width / 350**2 for *_, height, width in boxes])
    ratios = torch.tensor([math.log(width / height) for *_, height, width in boxes])
    assert areas.min() < 0.1
    assert areas.max() > 0.9
    assert (areas < 0.3).float().mean() > 0.24  # 0.22 / 0.92, and more: large boxes do not fit
    assert abs(ratios.mean()) < 0.02
    assert {min(left, 1) for _, left, *_ in boxes} == {0, 1}


def test_the_centre_is_taken_where_nothing_fits() -> None:
    # 40 pixels high and 4 wide, of ratio 3/4 at least: 5 high. The transposed one: 4 high, 5 wide.
    assert _crop_box(40, 4, (1, 1), (0.75, 4 / 3), None) == (17, 0, 5, 4)
    assert _crop_box(4, 40, (1, 1), (0.75, 4 / 3), None) == (0, 17, 4, 5)


def test_a_crop_is_resized_from_the_normalised_picture() -> None:
    frames = _frames()
    top, left, height, width = _crop_box(30, 40, (0.08, 1), (0.75, 4 / 3), _seeded(3))
    clip = random_resized_crop(frames, 16, generator=_seeded(3))
    box = normalise(frames)[..., top : top + height, left : left + width]
    torch.testing.assert_close(clip, F.interpolate(box, (16, 16), mode="bilinear"))
    assert clip.shape == (3, 2, 16, 16)


def test_short_sides_are_drawn_from_their_range() -> None:
    frames = torch.zeros(1, 20, 40, 3, dtype=torch.uint8)
    frames[:, :, 20:] = 255  # an edge, 8 pixels of the middle of which tell the scale
    clips = [random_scale_crop(frames, 20, (20, 30), _seeded(seed)) for seed in range(50)]
    assert {clip.shape for clip in clips} == {(3, 1, 20, 20)}
    assert len({clip.mean().item() for clip in clips}) > 10  # other places, other scales

    plain = Augment(20, short_side=(20, 20), **SHAPE)
    bright = [plain(frames, _seeded(seed)).gt(0).sum() // 60 for seed in range(300)]
    assert set(map(int, bright)) == set(range(21))  # columns


def test_all_frames_of_a_clip_are_treated_alike() -> None:
    frames = _frames(1).expand(3, -1, -1, -1)
    augment = Augment(16, flip=0.5, erase=0)
    for seed in range(10):
        clip = augment(frames, _seeded(seed))
        assert clip.shape == (1, 3, 3, 16, 16)
        assert torch.equal(clip[0, :, 0], clip[0, :, 2])


def test_flips_are_as_frequent_as_said() -> None:
    frames = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    frames[:, :, :8] = 255
    for flip in (0, 0.25, 1):
        augment = Augment(16, **SHAPE | {"flip": flip}, short_side=(16, 16))
        flipped = [augment(frames, _seeded(seed))[0, 0, 0, 0, 0] < 0 for seed in range(400)]
        assert abs(sum(flipped) / 400 - flip) <= (0.07 if flip == 0.25 else 0)


def test_an_erased_box_is_the_same_in_all_frames_with_fresh_noise() -> None:
    clip = torch.full((3, 4, 30, 40), 9.0)
    areas, noise = [], []
    for seed in range(300):
        erased = random_erase(clip, _seeded(seed))
        box = erased[0, 0] != 9
        rows, columns = box.any(1).nonzero().flatten(), box.any(0).nonzero().flatten()
        assert box.sum() == len(rows) * len(columns)
        assert ((erased != 9) == box).all()
        if box.any():
            assert not torch.equal(erased[:, 0], erased[:, 1])
            assert rows[-1] - rows[0] + 1 == len(rows)
            noise.append(erased[erased != 9])
            areas.append(box.sum().item() / 1200)
    assert (clip == 9).all()
    assert len(areas) > 290
    assert 0.015 < min(areas) < 0.05
    assert 0.29 < max(areas) < 0.35
    noise = torch.cat(noise)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_erasing_is_as_frequent_as_said() -> None:
    frames = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    augment = Augment(16, **SHAPE | {"erase": 0.25}, short_side=(16, 16))
    erased = [(augment(frames, _seeded(seed)) != -2).any() for seed in range(400)]
    assert abs(sum(erased) / 400 - 0.25) < 0.07


def test_a_picture_too_small_for_a_box() -> None:
    clip = torch.ones(3, 1, 1, 1)
    assert torch.equal(random_erase(clip), clip)
    assert Augment(4)(torch.zeros(2, 1, 1, 3, dtype=torch.uint8)).shape == (1, 3, 2, 4, 4)


def test_it_travels_to_workers() -> None:
    augment = pickle.loads(pickle.dumps(Augment(16)))
    assert augment == Augment(16)
    frames = _frames()
    assert torch.equal(augment(frames, _seeded()), Augment(16)(frames, _seeded()))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"size": 0}, "size: expected at least 1, got 0"),
        ({"flip": 1.5}, "flip: expected 0 to 1, got 1.5"),
        ({"erase": -1}, "erase: expected 0 to 1, got -1"),
        ({"area": (0, 1)}, "area: expected 0 < low <= high <= 1, got 0, 1"),
        ({"aspect": (2, 1)}, "aspect: expected 0 < low <= high <= inf, got 2, 1"),
        ({"short_side": (8, 20)}, r"short_side: expected 16 <= low <= high, got \(8, 20\)"),
        ({"rand_augment": "auto"}, "rand_augment: expected a string like"),
    ],
)
def test_bad_arguments(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**{"size": 16} | bad)
