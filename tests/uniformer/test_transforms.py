"""From frames to a view, against values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from uniformer.data.transforms import crop, normalise, resize_short_side, take_view


def _columns(H: int, W: int) -> torch.Tensor:
    """``[1, 1, H, W]``, every pixel the number of its column."""
    return torch.arange(W, dtype=torch.float32).expand(1, 1, H, W)


def test_normalise() -> None:
    frames = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    frames[1, 2, 3] = torch.tensor([255, 51, 0])
    clip = normalise(frames)
    assert clip.shape == (3, 2, 4, 5)
    assert clip.dtype == torch.float32
    # (1 - 0.45) / 0.225, (0.2 - 0.45) / 0.225, -0.45 / 0.225
    torch.testing.assert_close(clip[:, 1, 2, 3], torch.tensor([22 / 9, -10 / 9, -2.0]))
    torch.testing.assert_close(clip[:, 0], torch.full((3, 4, 5), -2.0))


def test_normalise_refuses_what_is_not_frames() -> None:
    with pytest.raises(TypeError, match=r"frames: expected torch.uint8, got torch.float32"):
        normalise(torch.zeros(2, 4, 5, 3))
    with pytest.raises(ValueError, match=r"frames: expected \[T, H, W, 3\], got \[3, 2, 4, 5\]"):
        normalise(torch.zeros(3, 2, 4, 5, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((240, 320), (224, 298)), ((320, 240), (298, 224)), ((100, 100), (224, 224))],
)
def test_the_long_side_is_floored(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize_short_side(torch.zeros(3, 1, *size), 224).shape[-2:] == expected  # 298.67


def test_resize_is_bilinear_between_pixel_centres_without_antialias() -> None:
    # Halving 8 columns to 4: centres at 0.5, 2.5, 4.5, 6.5. Doubling 2: at -0.25 (edge), 0.25, ...
    torch.testing.assert_close(
        resize_short_side(_columns(8, 8), 4)[0, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5])
    )
    torch.testing.assert_close(
        resize_short_side(_columns(2, 2), 4)[0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0])
    )
    # By 4 without antialias: the mean of the two pixels around each centre, 1.5 and 5.5.
    torch.testing.assert_close(
        resize_short_side(_columns(8, 8), 2)[0, 0, 0], torch.tensor([1.5, 5.5])
    )


def test_a_clip_of_the_right_size_stays() -> None:
    clip = torch.randn(3, 2, 8, 11)
    assert resize_short_side(clip, 8) is clip
    with pytest.raises(ValueError, match="size: expected at least 1, got 0"):
        resize_short_side(clip, 0)


@pytest.mark.parametrize(("position", "left"), [(0, 0), (1, 3), (2, 5)])
def test_crops_along_the_width(position: int, left: int) -> None:
    assert crop(_columns(4, 9), 4, position)[0, 0, 0].tolist() == [left + i for i in range(4)]


@pytest.mark.parametrize(("position", "top"), [(0, 0), (1, 3), (2, 5)])
def test_crops_along_the_height(position: int, top: int) -> None:
    cropped = crop(_columns(4, 9).mT, 4, position)
    assert cropped[0, 0, :, 0].tolist() == [top + i for i in range(4)]


def test_the_centre_is_rounded_up_on_both_axes() -> None:
    clip = torch.arange(35.0).reshape(1, 1, 5, 7)
    assert crop(clip, 2)[0, 0].tolist() == [[17, 18], [24, 25]]  # offsets ceil(1.5), ceil(2.5)


def test_crop_refuses() -> None:
    with pytest.raises(ValueError, match="size: expected at most 4, the clip's short side, got 5"):
        crop(torch.zeros(3, 1, 4, 9), 5)
    with pytest.raises(ValueError, match="position: expected 0, 1 or 2, got 3"):
        crop(torch.zeros(3, 1, 4, 9), 4, 3)


def test_a_view_is_the_three_steps() -> None:
    frames = torch.randint(0, 256, (2, 30, 40, 3), dtype=torch.uint8)
    view = take_view(frames, 24, 2)
    assert view.shape == (3, 2, 24, 24)
    whole = torch.nn.functional.interpolate(normalise(frames), (24, 32), mode="bilinear")
    torch.testing.assert_close(view, whole[..., 8:])
