"""Figures of classifications, and the files they go into."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from uniformer.engine.files import replacing
from uniformer.engine.metrics import Accuracy, write_confusion


@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 9))
def test_accuracy(classes: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    accuracy = Accuracy(classes)
    for part in torch.arange(count).split(7):
        accuracy.update(scores[part], labels[part])
    ranked = [sorted(range(classes), key=lambda c: -row[c]) for row in scores.tolist()]
    first = [order[0] == label for order, label in zip(ranked, labels.tolist(), strict=True)]
    five = [label in order[:5] for order, label in zip(ranked, labels.tolist(), strict=True)]
    assert accuracy.count == count
    assert accuracy.top1 == pytest.approx(100 * sum(first) / max(count, 1))
    assert accuracy.top5 == pytest.approx(100 * sum(five) / max(count, 1))
    for true in range(classes):
        of = [
            order[0] for order, label in zip(ranked, labels.tolist(), strict=True) if label == true
        ]
        assert accuracy.confusion[true].tolist() == [of.count(c) for c in range(classes)]


def test_mean_of_classes() -> None:
    accuracy = Accuracy(3)
    accuracy.update(torch.eye(3)[[0, 0, 0, 1, 0]], torch.tensor([0, 0, 0, 1, 1]))
    assert accuracy.top1 == pytest.approx(80)
    assert accuracy.mean_class == pytest.approx(75)  # class 2 does not occur
    assert accuracy.summary()["videos"] == 5
    assert Accuracy(3).mean_class == Accuracy(3).top1 == 0


def test_equal_scores_are_the_first_class() -> None:
    accuracy = Accuracy(7)
    accuracy.update(torch.zeros(2, 7), torch.tensor([0, 6]))
    assert accuracy.top1 == accuracy.top5 == 50


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.zeros(2, 4), [0, 1], r"scores: expected \[2, 3\], got \[2, 4\]"),
        (torch.zeros(2, 3), [0, 3], "labels: expected 0 <= label < 3, got 0 to 3"),
        (torch.zeros(1, 3), [-1], "got -1 to -1"),
        (torch.full((1, 3), float("nan")), [0], "got NaN"),
    ],
)
def test_wrong_scores(scores: torch.Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Accuracy(3).update(scores, torch.tensor(labels))


def test_confusion_files(tmp_path: Path) -> None:
    matrix = torch.tensor([[2, 1], [0, 3]])
    write_confusion(tmp_path, matrix, ["a, b", "caf\udce9"])  # not UTF-8 on the disk
    assert json.loads((tmp_path / "confusion.json").read_text()) == {
        "classes": ["a, b", "caf\udce9"],
        "confusion": [[2, 1], [0, 3]],
    }
    with (tmp_path / "confusion.csv").open(errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["true \\ predicted", "a, b", "caf\udce9"],
        ["a, b", "2", "1"],
        ["caf\udce9", "0", "3"],
    ]
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    write_confusion(tmp_path, torch.ones(60, 60, dtype=torch.int64))
    assert len(list(tmp_path.iterdir())) == 3


def test_replacing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    with contextlib.suppress(KeyError), replacing(path) as unfinished:
        unfinished.write_text("half of the n")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
