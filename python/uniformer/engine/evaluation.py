"""Testing as the papers do: several clips of a video, several crops of a clip, one score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data import (
    Broken,
    Dense,
    ResumableSampler,
    Uniform,
    Video,
    VideoDataset,
    Views,
    collate,
)
from ..data.dataset import Sampling
from .distributed import World
from .metrics import Accuracy

PROTOCOLS = ("official", "mmaction2")
AVERAGES = ("logits", "probabilities")
SAMPLINGS = ("dense", "uniform")


@dataclass(frozen=True)
class Strided:
    """mmaction2's dense sampling: exactly ``stride`` apart, beyond the end from the start again."""

    stride: int

    def spread(self, length: int, frames: int, views: int = 1) -> Tensor:
        """The clips of a test: indices ``[views, frames]``."""
        slack = max(length - ((frames - 1) * self.stride + 1), 0)
        starts = [round(k * (slack / (views - 1))) for k in range(views)] if views > 1 else []
        first = torch.tensor(starts or [slack // 2])
        return (first[:, None] + self.stride * torch.arange(frames)) % length


@dataclass(frozen=True)
class Protocol:
    """Which views of a video a model sees, and how their outputs become one score.

    Args:
        frames: frames of a clip.
        size: height and width of a crop, to which a frame's short side is resized.
        sampling: which frames the clips have.
        clips: how many clips, spread over the video.
        crops: of every clip, 1 (the centre) or 3 (along the long side).
        average: the mean over views of ``"logits"``, or of ``"probabilities"``.
        bgr: whether the model gets blue first.

    Raises:
        ValueError: a value is none of those there are.
    """

    frames: int
    size: int
    sampling: Sampling
    clips: int
    crops: int
    average: str
    bgr: bool = False

    def __post_init__(self) -> None:
        for name in ("frames", "size", "clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.crops not in (1, 3):
            raise ValueError(f"crops: expected 1 or 3, got {self.crops}")
        if self.average not in AVERAGES:
            raise ValueError(f"average: expected {_any_of(AVERAGES)}, got {self.average!r}")

    @property
    def views(self) -> int:
        """Views of a video."""
        return self.clips * self.crops

    def summary(self) -> dict[str, Any]:
        """The values by name, as JSON has them."""
        chosen: Any = self.sampling  # a dataclass, whichever it is
        sampling = {"sampling": type(chosen).__name__.lower(), **asdict(chosen)}
        return {**vars(self), **sampling}

    def dataset(self, videos: Sequence[Video]) -> VideoDataset:
        """The views of videos, ``clips`` float32 ``[views, 3, frames, size, size]``."""
        return VideoDataset(
            videos,
            num_frames=self.frames,
            sampling=self.sampling,
            transform=Views(self.size, (1,) if self.crops == 1 else (0, 1, 2)),
            views=self.clips,
            bgr=self.bgr,
        )

    def combine(self, logits: Tensor) -> Tensor:
        """The score of a video, ``[K]``, from the logits of its views, ``[views, K]``.

        The official code adds logits up; their mean has the same order, and a softmax that can be
        read as one.
        """
        logits = logits.float()
        return (logits.softmax(1) if self.average == "probabilities" else logits).mean(0)

    def probabilities(self, score: Tensor) -> Tensor:
        """Of the classes, from what ``combine`` returns."""
        return score if self.average == "probabilities" else score.softmax(-1)


def protocol_for(
    model: nn.Module,
    name: str = "official",
    *,
    sampling: str | None = None,
    stride: int | None = None,
    **changes: Any,
) -> Protocol:
    """How a model is tested.

    ``"official"``: the views of the first figure the authors give for the model. UniFormer samples
    densely and adds logits up; the lightweight models sample uniformly; UniFormerV2 too, and
    averages probabilities. ``"mmaction2"``: four clips, probabilities, and dense sampling with
    exact strides; its frames are resized by OpenCV, ours as in the official code.

    Args:
        model: a video model of ``create_model``.
        name: ``"official"`` or ``"mmaction2"``.
        sampling: ``"dense"`` or ``"uniform"`` (Something-Something's).
        stride: frames of the video between two of a clip, of dense sampling; 4 by default.
        **changes: of :class:`Protocol`.

    Raises:
        ValueError: there is no such protocol, a value is none of those there are, or the model
            takes no clips.
    """
    from ..models.facts import FACTS

    if name not in PROTOCOLS:
        raise ValueError(f"protocol: expected {_any_of(PROTOCOLS)}, got {name!r}")
    if sampling not in (None, *SAMPLINGS):
        raise ValueError(f"sampling: expected {_any_of(SAMPLINGS)}, got {sampling!r}")
    created = model.pretrained_cfg
    architecture, size = created["architecture"], created["input_size"][1:]
    views = FACTS[architecture][0].published[0].views
    if len(size) != 3 or views is None:
        raise ValueError(f"model: expected one that classifies videos, got {architecture}")
    _, crops, clips = map(int, views.split("x"))
    v2, light = architecture.startswith("uniformerv2"), architecture.endswith("xs")
    if sampling is None:
        sampling = "uniform" if (v2 or light) and stride is None else "dense"
    if sampling == "uniform" and stride is not None:
        raise ValueError(f"stride: expected none with uniform sampling, got {stride}")
    usual = {
        "frames": size[0],
        "size": size[1],
        "clips": clips if name == "official" else 4,
        "crops": crops,
        "average": "probabilities" if v2 or name == "mmaction2" else "logits",
    }
    dense = Dense if name == "official" else Strided
    chosen = Uniform() if sampling == "uniform" else dense(stride or 4)
    given = {key: value for key, value in changes.items() if value is not None}
    return Protocol(sampling=chosen, **{**usual, **given})


def _any_of(values: Sequence[str]) -> str:
    return " or ".join(map(repr, values))


@torch.inference_mode()
def score_views(model: nn.Module, clips: Tensor, batch_size: int) -> Tensor:
    """Logits ``[N, K]``, in float32 on the CPU, of clips ``[N, 3, T, H, W]``, some at a time.

    The clips are moved to the model's device and converted to its dtype; the model is in
    evaluation.
    """
    like = next(model.parameters())
    parts = [model(part.to(like)).float().cpu() for part in clips.split(batch_size)]
    return torch.cat(parts)


@dataclass
class Evaluation:
    """What a test gave: the accuracy of the videos that decode, and the others."""

    accuracy: Accuracy
    broken: list[Broken] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The figures by name."""
        return {**self.accuracy.summary(), "broken": [entry._asdict() for entry in self.broken]}


def evaluate(
    model: nn.Module,
    videos: Sequence[Video],
    protocol: Protocol,
    *,
    batch_size: int = 8,
    workers: int = 0,
    world: World | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Test a model on videos; under torchrun every process takes a part of them.

    Args:
        model: a classifier, on the device to be used; is left in the mode it was in.
        videos: what :func:`~uniformer.data.read_videos` gives; their labels are the model's.
        protocol: which views, and how they are averaged.
        batch_size: clips at a time.
        workers: processes that decode.
        world: the processes there are; alone by default.
        advance: called with the number of videos that are done, of this process.

    Returns:
        The figures over all processes, on every one of them. Videos that do not decode are counted
        apart.

    Raises:
        ValueError: there are no videos, or a label is none of the model's classes.
    """
    world = world or World()
    accuracy, broken = Accuracy(model.num_classes), []
    training = model.training
    model.eval()
    try:
        for batch in _batches(protocol, videos, batch_size, workers, world):
            broken += batch.broken
            numbers = batch.indices.unique_consecutive()
            if len(numbers):
                logits = score_views(model, batch.clips, batch_size)
                views = logits.split(protocol.views)
                scores = torch.stack([protocol.combine(video) for video in views])
                accuracy.update(scores, batch.labels[:: protocol.views])
            advance(len(numbers) + len(batch.broken))
    finally:
        model.train(training)
    accuracy.reduce()
    everyones = [entry for part in world.gather(broken) for entry in part]
    return Evaluation(accuracy, sorted(everyones))


def _batches(
    protocol: Protocol, videos: Sequence[Video], batch_size: int, workers: int, world: World
) -> Iterator[Any]:
    dataset = protocol.dataset(videos)
    order = ResumableSampler(len(videos), training=False, rank=world.rank, world_size=world.size)
    return iter(
        DataLoader(
            dataset,
            batch_size=max(1, batch_size // protocol.views),
            sampler=order,
            num_workers=workers,
            collate_fn=collate,
        )
    )
