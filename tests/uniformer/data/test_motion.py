"""The videos: complete or not there, the same again; a frame alone tells nothing of the class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from uniformer.data import count_frames, decode, motion, read_videos
from uniformer.data.motion import CLASSES, DIRECTIONS, FRAMES, SIZE, SPEEDS, render
from uniformer.data.scene import write_video

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("motion")
    motion(folder, split="val", clips=16)
    return folder


def _ink(frames: np.ndarray) -> np.ndarray:
    """Where the digit is: 0 on the ground, about 1 on it, of ``[T, H, W, 3]``."""
    grey = frames.astype(np.float64).mean(-1)
    return (grey - np.median(grey)).clip(0)


def _shift(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """How far to roll a picture so that it fits another best, in ``(-SIZE / 2, SIZE / 2]``."""
    product = np.fft.ifft2(np.fft.fft2(one).conj() * np.fft.fft2(other)).real
    y, x = divmod(int(product.argmax()), SIZE)
    return (y + SIZE // 2 - 1) % SIZE - SIZE // 2 + 1, (x + SIZE // 2 - 1) % SIZE - SIZE // 2 + 1


def test_digits_move_as_their_class_says() -> None:
    for label, name in enumerate(CLASSES):
        direction, speed = name.split(", ")
        x, y = np.array(DIRECTIONS[direction]) / np.hypot(*DIRECTIONS[direction]) * SPEEDS[speed]
        ink = _ink(np.stack(list(render("train", label))))
        assert ink.shape == (FRAMES, SIZE, SIZE)
        moved_y, moved_x = _shift(ink[2], ink[8])  # at most 15 pixels of 32
        assert abs(moved_y - 6 * y) <= 1
        assert abs(moved_x - 6 * x) <= 1


def test_a_frame_alone_says_nothing() -> None:
    # A digit is anywhere alike: the middle of its mass (on the torus) has no place it prefers.
    for label in (0, 5):
        places = []
        for number in range(label, 16 * 60, 16):
            ink = _ink(next(render("train", number)))
            phase = 2j * np.pi * np.arange(SIZE) / SIZE
            places.append([(np.exp(phase) * ink.sum(axis)).sum() for axis in (0, 1)])
        unit = np.array(places) / np.abs(places)
        assert (np.abs(unit.mean(0)) < 0.35).all()  # e^-7 for an even one


def test_videos_are_rendered_and_listed(folder: Path) -> None:
    videos, classes = motion(folder, split="val", clips=16)
    assert classes == CLASSES == sorted(CLASSES)
    assert [video.label for video in videos] == list(range(16))
    assert read_videos(folder / "val") == (videos, classes)
    assert count_frames(videos[3].path) == FRAMES
    decoded = decode(videos[3].path, range(FRAMES)).float()
    drawn = torch.from_numpy(np.stack(list(render("val", 3)))).float()
    assert (decoded - drawn).abs().mean() < 12  # the noise is mostly gone


def test_a_clip_is_encoded_alike_every_time(tmp_path: Path) -> None:
    frames = list(render("val", 3))
    files = {write_video(tmp_path / "a.mp4", iter(frames)).read_bytes() for _ in range(100)}
    assert len(files) == 1


def test_what_was_killed_goes_on(folder: Path) -> None:
    videos, _ = motion(folder, split="val", clips=16)
    before = {video.path: video.path.stat().st_mtime_ns for video in videos}
    whole = videos[5].path.read_bytes()
    videos[5].path.unlink()
    (videos[5].path.parent / ".00005.123.mp4").write_bytes(whole[:50])  # left by the killed one
    again, _ = motion(folder, split="val", clips=16)
    assert again == videos
    assert videos[5].path.read_bytes() == whole
    assert all(p.stat().st_mtime_ns == t for p, t in before.items() if p != videos[5].path)
    assert len(read_videos(folder / "val")[0]) == 16


def test_splits_and_seeds_differ() -> None:
    clips = [np.stack(list(render(split, 0, seed))) for split, seed in [("val", 0), ("train", 0)]]
    assert not np.array_equal(*clips)
    assert not np.array_equal(clips[0], np.stack(list(render("val", 0, 1))))
    assert np.array_equal(clips[0], np.stack(list(render("val", 0, 0))))


def test_bad_arguments(folder: Path) -> None:
    with pytest.raises(ValueError, match="split: expected 'train' or 'val', got 'test'"):
        motion(folder, split="test")
    with pytest.raises(ValueError, match="clips: expected at least 16, one a class, got 15"):
        motion(folder, split="val", clips=15)
    with pytest.raises(ValueError, match=r"folder: expected videos of .*'seed': 1.*'seed': 0"):
        motion(folder, split="val", seed=1)
