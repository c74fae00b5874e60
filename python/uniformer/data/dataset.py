"""Videos as a dataset: decoded, sampled, transformed; those that cannot be are told, not raised."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import seeding
from .frames import decode_images
from .lists import Video
from .video import VideoError, decode


class Sampling(Protocol):
    """Which frames make up a clip: ``Dense`` and ``Uniform`` of this package."""

    def random(self, length: int, frames: int, generator: torch.Generator) -> Tensor:
        """Indices ``[frames]`` of a clip of training, drawn."""

    def spread(self, length: int, frames: int, views: int) -> Tensor:
        """Indices ``[views, frames]`` of a test's clips."""


class Transform(Protocol):
    """From frames to what a model takes: ``Augment`` and ``Views`` of this package.

    ``random`` tells whether it draws, as for training, which decides how frames are sampled, too.
    """

    random: bool

    def __call__(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 ``[T, H, W, 3]`` to float32 ``[crops, 3, T, h, w]``; one crop if random."""


class Sample(NamedTuple):
    """The clips of a video, float32 ``[N, 3, T, H, W]``: its repeats, or its views by crops."""

    clips: Tensor
    label: int
    index: int  # type: ignore[assignment]  # instead of the method of tuples


class Broken(NamedTuple):
    """A video that gave no clip, and why."""

    index: int  # type: ignore[assignment]
    path: str
    reason: str


class Batch(NamedTuple):
    """Clips of several videos one after another.

    ``clips`` float32 ``[B, 3, T, H, W]``; ``labels`` and ``indices``, int64 ``[B]``, tell for each
    what it shows and which video it is of: clips of a video have the same index. ``broken`` are the
    videos that gave none; with nothing else B is 0.
    """

    clips: Tensor
    labels: Tensor
    indices: Tensor
    broken: list[Broken]


class VideoDataset(Dataset):
    """The clips of a list of videos.

    With a transform that draws, as for training, a video gives one random clip, augmented
    ``repeats`` times (decoded once: repeated augmentation); else ``views`` clips at the places of
    the test protocol, each in every crop of the transform. What is drawn depends on ``seed``, the
    epoch and the video alone, so that neither workers, nor resuming, nor the order change it.

    ``dataset[epoch, index]`` is the :class:`Sample` of a video in an epoch, as
    :class:`~uniformer.data.ResumableSampler` asks for it (so that an epoch reaches workers that
    live longer than one); ``dataset[index]`` is that of epoch 0. A video that cannot be decoded
    gives a :class:`Broken`; one cut short gives what there is of it. Neither raises or warns.

    Args:
        videos: what :func:`~uniformer.data.read_videos` gives.
        num_frames: T, frames in a clip.
        sampling: ``Dense(stride)`` or ``Uniform()``.
        transform: ``Augment(size, ...)`` or ``Views(size, ...)``.
        seed: of everything that is drawn.
        views: clips of a video in a test.
        repeats: augmentations of a video's clip in training.
        bgr: whether models get blue first, as the official ones for Something-Something and HMDB51
            do.

    Raises:
        ValueError: ``videos`` is empty; ``num_frames``, ``views`` or ``repeats`` is below 1;
            ``views`` with a transform that draws or ``repeats`` with one that does not.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        *,
        num_frames: int,
        sampling: Sampling,
        transform: Transform,
        seed: int = 0,
        views: int = 1,
        repeats: int = 1,
        bgr: bool = False,
    ) -> None:
        if not videos:
            raise ValueError("videos: expected at least one, got none")
        for name, size in (("num_frames", num_frames), ("views", views), ("repeats", repeats)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if transform.random and views > 1:
            raise ValueError(f"views: expected 1 with a transform that draws, got {views}")
        if not transform.random and repeats > 1:
            raise ValueError(
                f"repeats: expected 1 with a transform that does not draw, got {repeats}"
            )
        self.videos, self.num_frames = videos, num_frames
        self.sampling, self.transform = sampling, transform
        self.seed, self.views, self.repeats, self.bgr = seed, views, repeats, bgr

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | Broken:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        video = self.videos[index]
        generator = seeding.generator(self.seed, epoch, index)
        try:
            frames = self._read(video, generator)
        except (VideoError, OSError) as error:
            return Broken(index, os.fspath(video.path), str(error))
        if self.bgr:
            frames = frames.flip(-1)
        if self.transform.random:
            crops = [self.transform(frames, generator) for _ in range(self.repeats)]
        else:
            clips = frames.unflatten(0, (self.views, self.num_frames))
            crops = [self.transform(clip, generator) for clip in clips]
        return Sample(torch.cat(crops), video.label, index)

    def _read(self, video: Video, generator: torch.Generator) -> Tensor:
        """The frames of all clips, uint8 ``[T, H, W, 3]`` or ``[views * T, H, W, 3]``."""

        def choose(length: int) -> Tensor:
            if self.transform.random:
                return self.sampling.random(length, self.num_frames, generator)
            return self.sampling.spread(length, self.num_frames, self.views).flatten()

        if video.frames is not None:
            return decode_images(video.path, choose(video.frames), template=video.template)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a video cut short is used as far as it goes
            return decode(video.path, choose)


def collate(samples: Sequence[Sample | Broken]) -> Batch:
    """Put samples together, for a ``DataLoader``'s ``collate_fn``."""
    broken = [sample for sample in samples if isinstance(sample, Broken)]
    good = [sample for sample in samples if isinstance(sample, Sample)]
    counts = torch.tensor([len(sample.clips) for sample in good], dtype=torch.int64)
    labels = torch.tensor([sample.label for sample in good], dtype=torch.int64)
    indices = torch.tensor([sample.index for sample in good], dtype=torch.int64)
    clips = torch.cat([sample.clips for sample in good]) if good else torch.zeros(0, 3, 0, 0, 0)
    return Batch(clips, labels.repeat_interleave(counts), indices.repeat_interleave(counts), broken)
