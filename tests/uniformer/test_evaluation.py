"""Testing by several views: which frames, how outputs become a score, what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import uniformer
from torch import Tensor, nn
from uniformer.data import Dense, Uniform, Video
from uniformer.engine.distributed import World
from uniformer.engine.evaluation import (
    Evaluation,
    Protocol,
    Strided,
    evaluate,
    protocol_for,
    score_views,
)

from . import tiny

VIEWS = {"frames": 4, "size": 32, "clips": 2, "crops": 3, "average": "logits"}


def test_mmaction2_samples_with_exact_strides_and_wraps_around() -> None:
    spread = Strided(4).spread(100, 4, 3)  # span 13, slack 87: 43.5 rounds to even
    assert spread.tolist() == [[0, 4, 8, 12], [44, 48, 52, 56], [87, 91, 95, 99]]
    assert Strided(4).spread(100, 4, 1).tolist() == [[43, 47, 51, 55]]
    assert Strided(4).spread(5, 4, 2).tolist() == [[0, 4, 3, 2]] * 2


@pytest.mark.parametrize(
    ("model", "name", "sampling", "views", "average"),
    [
        ("uniformer_video_small", "official", Dense(4), (16, 224, 4, 1), "logits"),
        ("uniformer_video_small", "mmaction2", Strided(4), (16, 224, 4, 1), "probabilities"),
        ("uniformer_video_xs", "official", Uniform(), (32, 192, 1, 1), "logits"),
        ("uniformerv2_b16", "official", Uniform(), (8, 224, 4, 3), "probabilities"),
        ("uniformerv2_b16", "mmaction2", Uniform(), (8, 224, 4, 3), "probabilities"),
    ],
)
def test_protocols_of_the_models(
    model: str, name: str, sampling: Any, views: tuple[int, ...], average: str
) -> None:
    with torch.device("meta"):
        protocol = protocol_for(uniformer.create_model(model), name)
    got = protocol.frames, protocol.size, protocol.clips, protocol.crops
    assert (protocol.sampling, got, protocol.average) == (sampling, views, average)


def test_what_is_given_goes_before_the_protocol() -> None:
    model = tiny.light()
    protocol = protocol_for(model, stride=2, clips=3, crops=3, average="probabilities", size=None)
    assert protocol == Protocol(16, 160, Dense(2), 3, 3, "probabilities")
    assert protocol.views == 9
    assert protocol.summary() == {
        "frames": 16,
        "size": 160,
        "sampling": "dense",
        "stride": 2,
        "clips": 3,
        "crops": 3,
        "average": "probabilities",
        "bgr": False,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "slowfast"}, "protocol: expected 'official' or 'mmaction2', got 'slowfast'"),
        ({"sampling": "random"}, "sampling: expected 'dense' or 'uniform', got 'random'"),
        ({"sampling": "uniform", "stride": 4}, "stride: expected none with uniform sampling"),
        ({"crops": 2}, "crops: expected 1 or 3, got 2"),
        ({"clips": 0}, "clips: expected at least 1, got 0"),
        ({"average": "max"}, "average: expected 'logits' or 'probabilities', got 'max'"),
    ],
)
def test_wrong_protocols(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocol_for(tiny.light(), **changes)


def test_only_models_of_videos_have_protocols() -> None:
    for name in ("uniformer_xxs", "uniformer_dense_xxs"):
        with pytest.raises(ValueError, match=f"one that classifies videos, got {name}"):
            protocol_for(uniformer.create_model(name, **tiny.LIGHT))


def test_the_two_averages_can_disagree() -> None:
    logits = torch.tensor([[9.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]])
    by_logits = Protocol(sampling=Uniform(), **VIEWS)
    by_probabilities = Protocol(sampling=Uniform(), **{**VIEWS, "average": "probabilities"})
    torch.testing.assert_close(by_logits.combine(logits), torch.tensor([7 / 3, 2 / 3]))
    second = (2 / (1 + torch.tensor(-2.0).exp()) + 1 / (1 + torch.tensor(9.0).exp())) / 3
    torch.testing.assert_close(by_probabilities.combine(logits)[1], second)
    assert by_logits.combine(logits).argmax() == 0
    assert by_probabilities.combine(logits).argmax() == 1
    score = by_logits.combine(logits)
    torch.testing.assert_close(by_logits.probabilities(score), score.softmax(0))


class Partner(World):
    """One of two processes, of which the other says nothing."""

    def gather(self, value: Any) -> list[Any]:
        return [value]


def brightness(paths: Sequence[Path]) -> list[Video]:
    """Videos that are labelled by whether they are bright."""
    return [Video(path, int("bright" in path.name)) for path in paths]


class Brightness(nn.Module):
    """Takes a clip for class 1 where it is bright."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-1.0, 1.0, 0.0]))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append(tuple(x.shape))
        return x.mean((1, 2, 3, 4), keepdim=True)[..., 0, 0, 0] * self.weight


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Video]:
    folder = tmp_path_factory.mktemp("videos")
    paths = []
    for number in range(5):
        kind, value = ("bright", 230) if number % 2 else ("dark", 20)
        path = folder / f"{number}_{kind}.mp4"
        frame = torch.full((40, 48, 3), value, dtype=torch.uint8).numpy()
        paths.append(tiny.write_video(path, iter([frame] * 6)))
    paths.insert(2, folder / "gone.mp4")
    listed = brightness(paths)
    return [*listed[:-1], listed[-1]._replace(label=2)]  # the last one's label is wrong


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 0), (100, 1)])
def test_evaluation(videos: list[Video], batch_size: int, workers: int) -> None:
    model, advanced = Brightness().train(), []
    protocol = Protocol(sampling=Uniform(), **VIEWS)
    result = evaluate(
        model,
        videos,
        protocol,
        batch_size=batch_size,
        workers=workers,
        advance=advanced.append,
    )
    assert result.accuracy.confusion.tolist() == [[2, 0, 0], [0, 2, 0], [1, 0, 0]]
    assert result.accuracy.top1 == 80
    assert [entry.index for entry in result.broken] == [2]
    assert "no such file" in result.broken[0].reason
    assert result.summary()["broken"][0]["path"].endswith("gone.mp4")
    assert sum(advanced) == 6
    assert sum(shape[0] for shape in model.seen) == 5 * 6
    assert {shape[1:] for shape in model.seen} == {(3, 4, 32, 32)}
    assert max(shape[0] for shape in model.seen) <= batch_size
    assert model.training


def test_processes_share_the_videos(videos: list[Video]) -> None:
    protocol = Protocol(sampling=Uniform(), **VIEWS)
    parts: list[Evaluation] = [
        evaluate(Brightness(), videos, protocol, world=Partner(rank, 2)) for rank in (0, 1)
    ]
    alone = evaluate(Brightness(), videos, protocol)
    assert sum(part.accuracy.count for part in parts) == 5
    together = parts[0].accuracy.confusion + parts[1].accuracy.confusion
    assert together.equal(alone.accuracy.confusion)
    assert parts[0].broken + parts[1].broken == alone.broken


def test_the_score_is_the_models(tmp_path: Path) -> None:
    model = tiny.light(num_classes=3).eval()
    protocol = Protocol(sampling=Dense(2), **VIEWS)
    clips = protocol.dataset([Video(tiny.video(tmp_path / "a.mp4"), 0)])[0].clips
    assert clips.shape == (6, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(score_views(model, clips, 4), model(clips))
