"""The videos a run trains on and is validated with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch.utils.data import Dataset

from ..data import (
    Augment,
    Dense,
    Uniform,
    Video,
    VideoDataset,
    VideoListError,
    Views,
    motion,
    read_videos,
)
from .settings import Settings

MOTION = "motion"


@dataclass(frozen=True)
class Sources:
    """Datasets of training and, perhaps, of validation, and their classes."""

    training: Dataset
    validation: Dataset | None
    num_classes: int
    class_names: Sequence[str] | None = None


def open_sources(
    settings: Settings,
    data: str | PathLike[str],
    validation: str | PathLike[str] | None = None,
    root: str | PathLike[str] | None = None,
) -> Sources:
    """The clips of a run, as its settings cut them from the videos of two sources.

    Args:
        settings: of the run.
        data, validation: lists of videos or trees of folders, as ``read_videos`` takes them; or
            ``"motion"``, the task that comes with the package, which brings its own validation.
        root: folder that the paths of lists start from; of ``"motion"``, where its videos are kept,
            ``motion`` in the current folder if None.

    Raises:
        VideoListError: a source cannot be used; labels or names of classes do not fit.
        ValueError: a setting of the clips does not fit.
    """
    if data == MOTION:
        folder = Path("motion" if root is None else root)
        training, names = motion(folder, split="train")
        validating: list[Video] | None = motion(folder, split="val")[0]
        num_classes = settings.num_classes or len(names)
    else:
        template = {} if settings.template is None else {"template": settings.template}
        read = {"root": root, "num_classes": settings.num_classes, **template}
        training, names = read_videos(data, **read)
        largest = max(video.label for video in training)
        num_classes = settings.num_classes or (len(names) if names else largest + 1)
        validating = None
        if validation is not None:
            validating, others = read_videos(validation, **{**read, "num_classes": num_classes})
            _check_names(names, others)
    sampling = Dense(settings.stride) if settings.sampling == "dense" else Uniform()
    common = {"num_frames": settings.frames, "sampling": sampling, "bgr": settings.bgr}
    augment = Augment(
        settings.size,
        rand_augment=settings.rand_augment,
        area=settings.area,
        aspect=settings.aspect,
        short_side=settings.short_side,
        flip=settings.flip,
        erase=settings.erase,
    )
    clips = VideoDataset(
        training, transform=augment, seed=settings.seed, repeats=settings.repeats, **common
    )
    views = validating and VideoDataset(validating, transform=Views(settings.size), **common)
    return Sources(clips, views, num_classes, names)


def _check_names(training: Sequence[str] | None, validation: Sequence[str] | None) -> None:
    """Labels of two trees mean the same only if their folders do."""
    if training is None or validation is None or training == validation:
        return
    missing = sorted(set(training) - set(validation))
    unknown = sorted(set(validation) - set(training))
    raise VideoListError(
        "validation: expected a folder for each class of the training data, "
        f"got none for {missing or 'none'} and others for {unknown or 'none'}"
    )
