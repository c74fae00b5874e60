"""The main job: a video file in; a table, a chart and a JSON file of figures out."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import av
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import uniformer_kernels

from ..data import count_frames, decode
from ..data.sampling import dense_test
from ..data.scene import scene_frames, write_video
from ..data.transforms import take_view
from ..registry import create_model
from . import report
from .measure import PATHS, classify, compare, peak_memory, train


@dataclass(frozen=True)
class Settings:
    """What the demo runs: UniFormer-S 16x4 on 4 clips x 1 crop, the official protocol.

    Sizes are in frames and pixels; ``rounds`` and ``training_rounds`` are how often each is timed.
    """

    model: str = "uniformer_video_small"
    num_classes: int = 400
    frames: int = 16
    stride: int = 4
    clips: int = 4
    size: int = 224
    rounds: int = 3
    training_rounds: int = 2
    seed: int = 0


def run_demo(
    video: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike | None = None,
    out: str | os.PathLike = "demo",
    settings: Settings | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Classify a video and train on it in plain PyTorch and on the kernels, and compare.

    Prints a table and writes ``demo.png`` and ``demo.json`` into ``out``.

    Args:
        video: the file; None renders a moving scene to ``out/scene.mp4`` and reads that.
        checkpoint: weights in the official dialect; None takes random ones, of a fixed seed.
        out: folder for what is written, made if it is not there.
        settings: model, sampling and repeats; None is ``Settings()``.
        console: where to print; None is the terminal.

    Returns:
        The figures, as the JSON file has them. Times are in seconds, memory in MiB.

    Raises:
        VideoError: the video cannot be read.
        CheckpointError: the checkpoint cannot be read or does not fit the model.
    """
    settings, console, out = settings or Settings(), console or Console(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    model = create_model(settings.model, num_classes=settings.num_classes, checkpoint=checkpoint)

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        jobs_a_path = (1 + settings.rounds) * settings.clips + 1 + settings.training_rounds
        total = 2 + len(PATHS) * (jobs_a_path + 1)
        task = progress.add_task("Rendering a scene", total=total)

        def begin(description: str) -> None:
            progress.update(task, description=description)

        def advance() -> None:
            progress.advance(task)

        if video is None:
            video = write_video(out / "scene.mp4", scene_frames())
        advance()
        begin("Decoding")
        num_frames = count_frames(video)
        indices = dense_test(num_frames, settings.frames, settings.stride, settings.clips)
        frames = decode(video, indices.flatten()).unflatten(0, indices.shape)
        clips = [take_view(clip, settings.size)[None] for clip in frames]
        advance()
        begin("Classifying")
        jobs = [partial(classify, model, clip) for clip in clips]
        logits, forward_seconds = compare(jobs, settings.rounds, advance)
        begin("Training")
        # Two clips: behind the BatchNorm of one alone, the mean over its positions is always zero.
        batch = torch.cat([clips[0], clips[-1]])
        step = partial(train, model, batch)
        steps, training_seconds = compare([step], settings.training_rounds, advance)
        begin("Measuring memory")
        memory = {}
        for path in PATHS:
            memory[path] = peak_memory(path, settings.model, settings.num_classes, batch.shape)
            advance()

    # The official score of a video: logits, not probabilities, added up over its views.
    scores = {path: torch.cat(logits[path]).sum(0) for path in PATHS}
    losses = {path: steps[path][0][0] for path in PATHS}
    gradients = {path: torch.cat([g.flatten() for g in steps[path][0][1:]]) for path in PATHS}
    figures = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": _versions(),
        "video": {
            "path": os.fsdecode(video),
            "frames": num_frames,
            "clip_starts": indices[:, 0].tolist(),
        },
        "weights": os.fsdecode(checkpoint) if checkpoint else f"random, seed {settings.seed}",
        "settings": asdict(settings),
        "backends": _explain(settings),
        "forward": {
            "top5": {path: _top(scores[path]) for path in PATHS},
            "difference": max(map(_difference, logits["kernels"], logits["plain"])),
            **_ratios(forward_seconds, {path: memory[path]["classify"] for path in PATHS}),
        },
        "training": {
            "loss": {path: losses[path].item() for path in PATHS},
            "loss_difference": _difference(losses["kernels"], losses["plain"]),
            "gradient_difference": _l2_difference(gradients["kernels"], gradients["plain"]),
            **_ratios(training_seconds, {path: memory[path]["train"] for path in PATHS}),
        },
    }
    (out / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
    report.draw(figures, frames[len(frames) // 2], out / "demo.png")
    report.show(figures, console)
    console.print(f"Written: {out / 'demo.png'}, {out / 'demo.json'}", markup=False, soft_wrap=True)
    return figures


def _ratios(seconds: dict[str, float], mebibytes: dict[str, float]) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "speedup": seconds["plain"] / seconds["kernels"],
        "peak_mib": mebibytes,
        "memory_ratio": mebibytes["plain"] / max(mebibytes["kernels"], 1),
    }


def _top(scores: Tensor) -> list[tuple[int, float]]:
    """The five best classes and their scores, best first."""
    top = scores.topk(min(5, len(scores)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def _difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


def _l2_difference(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def _explain(settings: Settings) -> str:
    """Which backend serves the operator that weighs most, at the first stage's shape."""
    grid = (settings.frames + 1) // 2, settings.size // 4, settings.size // 4
    x, weight = torch.zeros(1, *grid, 64), torch.zeros(64, 1, 5, 5, 5)
    return uniformer_kernels.explain("depthwise_conv3d", x, weight)


def _machine() -> dict[str, Any]:
    # platform.processor() is empty on many a Linux.
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return {
        "system": platform.platform(),
        "processor": names[0] if names else platform.processor(),
        "vector_unit": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _versions() -> dict[str, str]:
    return {
        "uniformer_kernels": uniformer_kernels.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "av": av.__version__,
    }
