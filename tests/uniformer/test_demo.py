"""The main job on a short video at a small size: figures, chart, agreement."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uniformer
from PIL import Image
from rich.console import Console
from uniformer.data import count_frames, decode
from uniformer.data.scene import scene_frames, write_video
from uniformer.data.transforms import take_view
from uniformer.demo.measure import PATHS, compare, peak_memory, train
from uniformer.demo.run import Settings, run_demo

from uniformer_kernels.backends import chosen_backend

TINY = Settings(num_classes=10, frames=4, stride=2, clips=2, size=64, rounds=2, training_rounds=1)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    """The demo's figures, its folder and what it printed, on a video and a checkpoint."""
    out = tmp_path_factory.mktemp("demo")
    video = write_video(out / "in.mp4", scene_frames(seconds=1, width=96, height=72))
    torch.manual_seed(1)
    model = uniformer.create_model(TINY.model, num_classes=10)
    torch.nn.init.normal_(model.head.bias)
    torch.save({"model": model.state_dict()}, out / "in.pth")
    console = Console(file=io.StringIO(), width=100)
    figures = run_demo(video, out / "in.pth", out / "made" / "here", TINY, console)
    return figures, out, console.file.getvalue()


def test_both_paths_agree(ran: tuple) -> None:
    figures, _, _ = ran
    assert figures["forward"]["difference"] < 1e-4
    assert figures["training"]["loss_difference"] < 1e-4
    assert figures["training"]["gradient_difference"] < 1e-3
    plain, kernels = (figures["forward"]["top5"][path] for path in PATHS)
    assert [index for index, _ in plain] == [index for index, _ in kernels]


def test_the_top_classes_are_those_of_the_checkpoint_and_the_official_views(ran: tuple) -> None:
    figures, out, _ = ran
    model = uniformer.create_model(TINY.model, num_classes=10, checkpoint=out / "in.pth").eval()
    # 30 frames, clips of 4x2: starts 0 and 22, spacing 7 / 3.
    clips = [decode(out / "in.mp4", indices) for indices in ([0, 2, 4, 7], [22, 24, 26, 29])]
    with torch.no_grad():
        logits = model(torch.stack([take_view(clip, 64) for clip in clips])).sum(0)
    top = logits.topk(5)
    for path in PATHS:
        indices, scores = zip(*figures["forward"]["top5"][path], strict=True)
        assert list(indices) == top.indices.tolist()
        np.testing.assert_allclose(scores, top.values, rtol=1e-4)
    assert figures["video"]["frames"] == 30
    assert figures["video"]["clip_starts"] == [0, 22]


def test_the_ratios_are_those_of_the_figures(ran: tuple) -> None:
    figures, _, _ = ran
    for job in ("forward", "training"):
        seconds, memory = figures[job]["seconds"], figures[job]["peak_mib"]
        assert min(seconds.values()) > 0
        assert figures[job]["speedup"] == seconds["plain"] / seconds["kernels"]
        assert figures[job]["memory_ratio"] == memory["plain"] / max(memory["kernels"], 1)
    assert min(figures["training"]["peak_mib"].values()) > 80  # 21 M gradients of 4 bytes


def test_the_files_are_written(ran: tuple) -> None:
    figures, out, _ = ran
    read = json.loads((out / "made" / "here" / "demo.json").read_text())
    assert read == json.loads(json.dumps(figures))
    assert read["weights"] == str(out / "in.pth")
    assert read["machine"]["threads"] == torch.get_num_threads()
    assert read["versions"]["torch"] == torch.__version__
    chart = np.asarray(Image.open(out / "made" / "here" / "demo.png").convert("RGB"))
    assert min(chart.shape[:2]) > 500
    assert len(np.unique(chart.reshape(-1, 3), axis=0)) > 500  # frames and bars, not a blank page


def test_what_is_printed(ran: tuple) -> None:
    figures, _, printed = ran
    index, score = figures["forward"]["top5"]["plain"][0]
    assert f"class {index} ({score:.4g})" in printed
    assert f"{figures['forward']['speedup']:.2f}x" in printed
    assert "random" not in printed


def test_without_a_video_and_weights_it_makes_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {"classify": 1.0, "train": 2.0}
    monkeypatch.setattr("uniformer.demo.run.peak_memory", lambda *_: memory)
    console = Console(file=io.StringIO(), width=100)
    figures = run_demo(out=tmp_path, settings=TINY, console=console)
    assert count_frames(tmp_path / "scene.mp4") == 300
    assert figures["weights"] == "random, seed 0"
    assert "the classes mean nothing here" in console.file.getvalue()


def test_compare_interleaves_the_paths_and_leaves_the_first_round_untimed() -> None:
    calls: list[str | None] = []

    def job() -> int:
        calls.append(chosen_backend())
        return len(calls)

    advanced: list[None] = []
    results, seconds = compare([job, job], 2, lambda: advanced.append(None))
    assert calls == ["reference", None] * 6
    assert results == {"plain": [1, 3], "kernels": [2, 4]}
    assert set(seconds) == set(PATHS)
    assert len(advanced) == 12


def test_the_training_step_is_cross_entropy_with_fresh_gradients() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3))
    clip = torch.randn(2, 6)
    first, second = train(model, clip), train(model, clip)
    expected = -model(clip).log_softmax(1)[:, 0].mean()
    torch.testing.assert_close(first[0], expected)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    for step in (first, second):
        for got, want in zip(step[1:], gradients, strict=True):
            torch.testing.assert_close(got, want)


def test_peak_memory_holds_what_the_work_must_allocate() -> None:
    peaks = peak_memory("plain", TINY.model, 10, (1, 3, 16, 160, 160))
    # At 160, scores and their softmax alone are 2 x 5 heads x 800² tokens of 4 bytes: 24 MiB.
    assert 24 < peaks["classify"] < 300
    assert peaks["train"] > peaks["classify"] + 80  # 21 M gradients of 4 bytes
