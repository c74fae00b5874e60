"""Clips of real files: which frames, how often, the same in every worker, never an exception."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from uniformer.data import (
    Augment,
    Broken,
    Dense,
    ResumableSampler,
    Sample,
    Uniform,
    Video,
    VideoDataset,
    Views,
    collate,
    decode,
)
from uniformer.data.scene import scene_frames, write_video
from uniformer.data.transforms import normalise, take_view

PLAIN = Augment(32, rand_augment=None, short_side=(32, 32), flip=0, erase=0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three videos of 20, 25 and 30 frames, one that is text, one without frames, one cut short."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [
        write_video(folder / f"{i}.mp4", scene_frames(seconds=s, fps=10, width=48, height=32))
        for i, s in enumerate((2, 2.5, 3))
    ]
    whole = paths[2].read_bytes()
    for name, content in (
        ("text.mp4", b"no video\n" * 99),
        ("none.mp4", whole[: whole.index(b"mdat") + 4]),
        ("cut.mp4", whole[: len(whole) * 2 // 3]),
    ):
        paths.append(folder / name)
        paths[-1].write_bytes(content)
    return paths


@pytest.fixture(scope="module")
def videos(paths: list[Path]) -> list[Video]:
    return [Video(path, label) for label, path in enumerate(paths)]


def _training(videos: list[Video], **keywords: object) -> VideoDataset:
    keywords = {"transform": Augment(32, flip=0.5, erase=0.5), "repeats": 2, "seed": 5} | keywords
    return VideoDataset(videos, num_frames=4, sampling=Dense(2), **keywords)


def test_views_of_a_test_are_clips_by_crops(videos: list[Video]) -> None:
    dataset = VideoDataset(
        videos, num_frames=4, sampling=Dense(2), transform=Views(32, (0, 2)), views=3
    )
    clips, label, index = dataset[1]
    assert (label, index) == (1, 1)
    assert clips.shape == (6, 3, 4, 32, 32)
    # 25 frames, 17 to spare: clips start at 0, 8, 16; spacing 7 / 3.
    frames = decode(videos[1].path, [16, 18, 20, 23])
    torch.testing.assert_close(clips[4], take_view(frames, 32, 0), rtol=0, atol=0)
    torch.testing.assert_close(clips[5], take_view(frames, 32, 2), rtol=0, atol=0)


def test_a_clip_of_training_is_of_the_frames_drawn(videos: list[Video]) -> None:
    dataset = _training(videos, transform=PLAIN, repeats=1)
    every = take_wide(videos[0].path)
    (clip,) = dataset[0, 0].clips
    seen = [
        (start, left)
        for start in range(13)
        for left in range(17)
        if torch.equal(clip[:, 0], every[:, start, :, left : left + 32])
    ]
    assert len(seen) == 1


def take_wide(path: Path) -> torch.Tensor:
    """All 20 frames, uncropped."""
    return normalise(decode(path, range(20)))


def test_repeats_share_frames_and_differ_in_augmentation(videos: list[Video]) -> None:
    dataset = VideoDataset(
        videos,
        num_frames=4,
        sampling=Uniform(),
        transform=Augment(32, rand_augment=None, short_side=(32, 32), flip=0.5, erase=0),
        repeats=8,
    )
    clips = dataset[2].clips
    assert clips.shape == (8, 3, 4, 32, 32)
    rows = clips.mean((1, 3, 4))  # hardly any other crop or frame has the same mean
    assert len(torch.unique(rows, dim=0)) > 2


def test_what_is_drawn_depends_on_seed_epoch_and_video_alone(videos: list[Video]) -> None:
    first = _training(videos)[3, 1].clips
    torch.rand(5)
    again = _training(videos)
    again[0, 0], again[3, 2]
    assert torch.equal(again[3, 1].clips, first)
    for other in (again[4, 1], again[1], _training(videos, seed=6)[3, 1], again[3, 2]):
        assert not torch.equal(other.clips, first)
    assert torch.equal(again[0, 1].clips, again[1].clips)


def test_workers_that_outlive_an_epoch_change_nothing(videos: list[Video]) -> None:
    def epochs(workers: int) -> list[torch.Tensor]:
        dataset = _training(videos)
        sampler = ResumableSampler(len(dataset), training=True, seed=1)
        loader = DataLoader(
            dataset,
            batch_size=4,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
        )
        batches = []
        for epoch, start in ((0, 0), (1, 4)):
            sampler.set_epoch(epoch, start)
            batches += list(loader)
        assert [len(batch.broken) for batch in batches][:2] != [0, 0]
        return [tensor for batch in batches for tensor in batch[:3]]

    alone, together = epochs(0), epochs(2)
    assert len(alone) == 9  # six videos in two batches, then the last two of the next epoch
    assert all(map(torch.equal, alone, together))


def test_blue_first(videos: list[Video]) -> None:
    rgb, bgr = (_training(videos, transform=PLAIN, bgr=bgr)[0].clips for bgr in (False, True))
    assert torch.equal(bgr, rgb.flip(1))


def test_broken_videos_are_told(videos: list[Video], tmp_path: Path) -> None:
    gone = Video(tmp_path / "gone.mp4", 0)
    dataset = _training([*videos, gone])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = [dataset[index] for index in range(7)]
    assert [type(sample) for sample in samples] == [*[Sample] * 3, Broken, Broken, Sample, Broken]
    for index, reason in ((3, "Invalid data"), (4, "frame"), (6, "no such file")):
        assert samples[index].index == index
        assert samples[index].path == str(dataset.videos[index].path)
        assert reason in samples[index].reason

    batch = collate(samples)
    assert batch.clips.shape == (8, 3, 4, 32, 32)
    assert batch.labels.tolist() == batch.indices.tolist() == [0, 0, 1, 1, 2, 2, 5, 5]
    assert batch.labels.dtype == torch.int64
    assert batch.broken == [samples[3], samples[4], samples[6]]
    assert torch.equal(batch.clips[2:4], samples[1].clips)


def test_a_batch_of_nothing_but_broken_ones(videos: list[Video]) -> None:
    batch = collate([_training(videos)[3]])
    assert len(batch.clips) == len(batch.labels) == len(batch.indices) == 0
    assert len(batch.broken) == 1


def test_folders_of_frames(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 40, 3), np.uint8)
    for number, frame in enumerate(frames, 1):
        image.fromarray(frame).save(tmp_path / f"{number:05}.png")
    video = Video(tmp_path, 4, 6, "{:05d}.png")
    dataset = VideoDataset([video], num_frames=3, sampling=Uniform(), transform=Views(32))
    # Segments of 5 / 3 frames: borders 0, 2, 3; the middle adds int(0.83).
    expected = take_view(torch.from_numpy(frames[[0, 2, 3]]), 32)
    assert torch.equal(dataset[0].clips, expected[None])

    (tmp_path / "00003.png").unlink()
    broken = dataset[0]
    assert isinstance(broken, Broken)
    assert "00003.png': No such file" in broken.reason
    (tmp_path / "00003.png").write_bytes(b"no image")
    assert "cannot identify image" in dataset[0].reason
    image.fromarray(frames[0, :30]).save(tmp_path / "00003.png")
    assert "expected images of one size" in dataset[0].reason


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"videos": []}, "videos: expected at least one"),
        ({"num_frames": 0}, "num_frames: expected at least 1, got 0"),
        ({"repeats": 0}, "repeats: expected at least 1, got 0"),
        ({"views": 2}, "views: expected 1 with a transform that draws, got 2"),
        ({"transform": Views(32), "repeats": 2}, "repeats: expected 1 with a transform that"),
    ],
)
def test_bad_arguments(videos: list[Video], bad: dict[str, object], message: str) -> None:
    good = {"videos": videos, "num_frames": 4, "sampling": Uniform(), "transform": PLAIN}
    with pytest.raises(ValueError, match=message):
        VideoDataset(**good | bad)
