"""Every example runs, and does what it says."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_training_loop(capsys: pytest.CaptureFixture[str]) -> None:
    losses = example("train")(steps=8, size=16)
    assert losses[-1] < losses[0]
    assert "depthwise_conv3d" in capsys.readouterr().out


def test_features() -> None:
    vectors, maps = example("features")(frames=4, size=64)
    assert vectors.shape == (2, 448)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (56, 2, 16, 16),
        (112, 2, 8, 8),
        (224, 2, 4, 4),
        (448, 2, 2, 2),
    ]


def test_detection_backbone() -> None:
    maps = example("detection")(height=64, width=96)
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [tuple(x.shape) for x in maps] == [(1, 256, *size) for size in sizes]


def test_fine_tuning_from_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(example("finetune")(steps=1, size=32)) == 1
    assert "inflated (average)" in capsys.readouterr().out


def test_all_of_them_are_short_and_tested() -> None:
    tested = {"train", "features", "detection", "finetune"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
    assert all(len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40 for name in tested)
