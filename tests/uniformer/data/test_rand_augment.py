"""The fifteen operations against values worked out by hand; how often, how strong, how alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from uniformer.data import RandAugment
from uniformer.data.rand_augment import OPERATIONS

Image = pytest.importorskip("PIL.Image")


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _apply(name: str, values: Tensor, level: float, sign: int = 1, increasing: bool = True) -> list:
    """An operation on a grey picture ``[H, W]``: the first channel of the result."""
    image = Image.fromarray(values.to(torch.uint8)[..., None].expand(-1, -1, 3).numpy())
    result = OPERATIONS[name](image, level=level, sign=sign, increasing=increasing)
    assert result.mode == "RGB"
    return [[pixel[0] for pixel in row] for row in torch.tensor(_array(result)).tolist()]


def _array(image: Image.Image) -> list:
    width, height = image.size
    return [[image.getpixel((x, y)) for x in range(width)] for y in range(height)]


ROW = torch.tensor([[0, 40, 100, 127, 128, 200]])


@pytest.mark.parametrize(
    ("name", "level", "sign", "increasing", "expected"),
    [
        ("invert", 0.3, 1, True, [255, 215, 155, 128, 127, 55]),
        ("auto contrast", 0.3, 1, True, [0, 51, 127, 161, 163, 254]),
        ("posterise", 0.7, 1, True, [0, 0, 64, 64, 128, 192]),  # 4 - int(2.8) = 2 bits
        ("posterise", 0.3, 1, False, [0, 0, 0, 0, 128, 128]),  # int(1.2) bit
        ("posterise", 1.0, 1, True, [0] * 6),
        ("solarise", 0.5, 1, True, [0, 40, 100, 127, 127, 55]),  # from 128 on
        ("solarise", 0.5, 1, False, [0, 40, 100, 127, 127, 55]),
        ("solarise", 0.0, 1, True, [0, 40, 100, 127, 128, 200]),
        ("solarise", 0.0, 1, False, [255, 215, 155, 128, 127, 55]),
        ("solarise add", 0.9, 1, True, [99, 139, 199, 226, 128, 200]),  # int(99)
        ("brightness", 1.0, -1, True, [0, 4, 10, 12, 12, 20]),  # 1 - 0.9
        ("brightness", 0.5, 1, True, [0, 58, 145, 184, 185, 255]),  # 1 + 0.45
        ("brightness", 0.5, -1, False, [0, 40, 100, 127, 128, 200]),  # 0.1 + 0.9
        ("color", 0.8, 1, True, [0, 40, 100, 127, 128, 200]),  # grey already
        ("contrast", 1.0, -1, True, [89, 93, 99, 101, 101, 109]),  # the mean is 99
    ],
)
def test_colours(name: str, level: float, sign: int, increasing: bool, expected: list[int]) -> None:
    assert _apply(name, ROW, level, sign, increasing) == [expected]


def test_equalise_spreads_what_there_is_evenly() -> None:
    (row,) = _apply("equalise", ROW.repeat_interleave(51, 1), 0.3)
    assert row[::51] == [0, 51, 102, 153, 204, 255]


def test_sharpness_blends_with_a_smooth_picture() -> None:
    values = torch.zeros(5, 5)
    values[2, 2] = 130
    # The filter has 5 in the middle of 13; the factor is 1 - 0.9.
    assert _apply("sharpness", values, 1.0, -1)[2] == [0, 9, 58, 9, 0]


def test_movements_fill_with_grey() -> None:
    values = torch.full((10, 20), 50)
    values[:, 10:] = 200
    # The picture moves left by 0.45 * 20 * 0.5 = 4.5 pixels, then right.
    left, right = (_apply("translate x", values, 0.5, sign)[5] for sign in (1, -1))
    assert left[:4] == [50] * 4
    assert left[8:15] == [200] * 7
    assert left[16:] == [128] * 4
    assert right[:4] == [128] * 4
    assert right[16:] == [200] * 4
    up = [row[3] for row in _apply("translate y", values, 1.0)]
    assert up == [50] * 5 + [128] * 5  # 4.5 pixels

    sheared = _apply("shear x", values, 1.0)  # 0.3 pixels a row
    edges = [sum(value <= 125 for value in row) for row in (sheared[0], sheared[9])]
    assert edges == [10, 7]  # 10 - 0.15 and 10 - 2.85
    assert _apply("shear y", values, 1.0)[9][0] == 50
    assert _apply("shear y", values, 1.0)[9][19] == 128

    values = torch.full((21, 21), 50)
    values[10, 20] = 250
    turned = torch.tensor(_apply("rotate", values, 1.0))  # by 30 degrees, against the clock
    assert turned[0, 0] == 128
    y, x = divmod(int((turned - 50).where(turned != 128, 0).argmax()), 21)
    assert (x, y) == (19, 5)  # 10 + 10 cos 30 = 18.7, 10 - 10 sin 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rand", RandAugment(10, 2, 0, False)),
        ("rand-m7-n4-mstd0.5-inc1", RandAugment(7, 4, 0.5, True)),
        ("rand-m5-n2-mstd0.25", RandAugment(5, 2, 0.25, False)),
        ("rand-inc0-m2.5", RandAugment(2.5, 2, 0, False)),
    ],
)
def test_strings(text: str, expected: RandAugment) -> None:
    assert RandAugment.parse(text) == expected


@pytest.mark.parametrize("text", ["", "auto", "rand-", "rand-x3", "rand-m", "rand-n-2", "v0"])
def test_other_strings(text: str) -> None:
    with pytest.raises(ValueError, match=r"rand_augment: expected a string like .*, got"):
        RandAugment.parse(text)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"magnitude": 11}, "magnitude: expected 0 to 10, got 11"),
        ({"layers": -1}, "layers: expected at least 0, got -1"),
        ({"deviation": -1}, "deviation: expected at least 0, got -1"),
    ],
)
def test_bad_arguments(bad: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandAugment(**bad)


def test_all_frames_get_the_same_and_seeds_differ() -> None:
    frame = torch.randint(0, 256, (1, 20, 24, 3), dtype=torch.uint8)
    augment = RandAugment.parse("rand-m7-n4-mstd0.5-inc1")
    results = []
    for seed in range(20):
        clip = augment(frame.expand(3, -1, -1, -1), _seeded(seed))
        assert clip.dtype == torch.uint8
        assert clip.shape == (3, 20, 24, 3)
        assert torch.equal(clip[0], clip[2])
        assert torch.equal(augment(frame, _seeded(seed))[0], clip[0])
        results.append(clip[0])
    assert len(torch.unique(torch.stack(results), dim=0)) > 15


def test_half_of_the_operations_are_carried_out_each_as_often() -> None:
    augment = RandAugment(7, 1, 0.5, True)
    steps = [augment._draw(_seeded(seed)) for seed in range(3000)]
    drawn = [step for step in steps if step is not None]
    assert abs(len(drawn) / 3000 - 0.5) < 0.05
    kinds = [(step.func, step.args) for step in drawn]
    counts = [
        kinds.count((getattr(operation, "func", operation), getattr(operation, "args", ())))
        for operation in OPERATIONS.values()
    ]
    assert sum(counts) == len(drawn)
    assert min(counts) > 60  # 100 each
    levels = torch.tensor([step.keywords["level"] for step in drawn])
    assert abs(levels.mean() - 0.7) < 0.01
    assert abs(levels.std() - 0.05) < 0.01
    assert abs(sum(step.keywords["sign"] for step in drawn)) < 150
    strongest = RandAugment(10, 1, 5)
    levels = [step.keywords["level"] for s in range(99) if (step := strongest._draw(_seeded(s)))]
    assert 0 <= min(levels) < max(levels) == 1
