"""How time and memory grow with frames and resolution: `python -m benchmarks.growth`.

Forward passes of one sample in float32. The dense models show what the attention of stage 3 costs
(the TPAMI paper's Figure 4): of the whole grid, inside windows, or both in turn.
"""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import uniformer
from torch import Tensor

from uniformer_kernels.bench import timing
from uniformer_kernels.bench.machine import machine

from . import memory

FRAMES, SIZES = (4, 8, 16, 32, 64), (128, 192, 256, 320, 384)
AXES = {"frames": FRAMES, "resolution": SIZES}


@dataclass(frozen=True)
class Family:
    """Models that differ in nothing but what they are called for.

    Args:
        axis: what grows.
        models: keywords of ``create_model`` by name, for a value of the axis.
        shape: of the input for such a value.
    """

    axis: str
    models: Callable[[int], dict[str, dict[str, Any]]]
    shape: Callable[[int], tuple[int, ...]]


def _one(name: str) -> Callable[[int], dict[str, dict[str, Any]]]:
    return lambda value: {name: {"name": name}}


def _dense(size: int) -> dict[str, dict[str, Any]]:
    return {
        f"dense S, {attention}": {"name": "uniformer_dense_small", "attention": attention}
        for attention in ("global", "hybrid", "window")
    }


def _v2(**keywords: Any) -> dict[str, dict[str, Any]]:
    return {"uniformerv2_b16": {"name": "uniformerv2_b16", **keywords}}


FAMILIES = {
    "video-xxs": Family("frames", _one("uniformer_video_xxs"), lambda T: (1, 3, T, 160, 160)),
    "video-small": Family("frames", _one("uniformer_video_small"), lambda T: (1, 3, T, 112, 112)),
    "v2": Family("frames", lambda T: _v2(num_frames=T), lambda T: (1, 3, T, 224, 224)),
    "image-xxs": Family("resolution", _one("uniformer_xxs"), lambda s: (1, 3, s, s)),
    "image-small": Family("resolution", _one("uniformer_small"), lambda s: (1, 3, s, s)),
    "dense": Family("resolution", _dense, lambda s: (1, 3, s, s)),
    "v2-resolution": Family(
        "resolution",
        lambda s: _v2(num_frames=4, resolution=s),
        lambda s: (1, 3, 4, s, s),
    ),
}


def build(family: str, value: int, name: str) -> tuple[Callable[[Tensor], object], Tensor]:
    """A model's forward pass, and its input."""
    torch.manual_seed(0)
    found = FAMILIES[family]
    model = uniformer.create_model(**found.models(value)[name]).eval()
    return torch.inference_mode()(model), torch.randn(found.shape(value))


def measure(family: str, values: Sequence[int], rounds: int) -> Iterator[dict[str, Any]]:
    """Seconds and peak bytes of every model of a family, value by value."""
    found = FAMILIES[family]
    names = list(found.models(values[0]))
    bytes_ = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            peaks = process.submit(_peaks, family, name, values, torch.get_num_threads())
            bytes_[name] = dict(zip(values, peaks.result(), strict=True))
    for value in values:
        calls = {name: partial(*build(family, value, name)) for name in names}
        for name, samples in timing.compare(calls, rounds=rounds, sample=0).items():
            yield {
                "family": family,
                "model": name,
                found.axis: value,
                "input": list(found.shape(value)),
                "seconds": samples.median,
                "quartiles": samples.quartiles,
                "bytes": bytes_[name][value],
            }


def _peaks(family: str, name: str, values: Sequence[int], threads: int) -> list[int]:
    """The least of three calls' peaks each: all else that a process does only adds to it."""
    torch.set_num_threads(threads)
    found = []
    for value in values:
        call = partial(*build(family, value, name))
        call()  # loads code and packs weights
        found.append(min(memory.peak(call) for _ in range(3)))
    return found


def plot(path: Path, rows: Sequence[dict[str, Any]], machines: Sequence[dict[str, Any]]) -> None:
    """Time and memory against what grows, both on logarithmic axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    axes_ = [axis for axis in AXES if any(axis in row for row in rows)]
    figure = Figure(figsize=(5.5 * len(axes_), 8), layout="constrained")
    grid = figure.subplots(2, len(axes_), squeeze=False, sharex="col")
    for column, axis in enumerate(axes_):
        its = [row for row in rows if axis in row]
        for name in dict.fromkeys(row["model"] for row in its):
            points = sorted((row[axis], row) for row in its if row["model"] == name)
            xs = [x for x, _ in points]
            shape = points[-1][1]["input"]
            fixed = f"{shape[-1]} px" if axis == "frames" else f"{shape[2]} frames"
            label = name if len(shape) == 4 else f"{name}, {fixed}"
            grid[0, column].plot(xs, [r["seconds"] * 1e3 for _, r in points], ".-", label=label)
            grid[1, column].plot(xs, [r["bytes"] / 1e6 for _, r in points], ".-", label=label)
        for row, unit in zip(grid[:, column], ("ms", "MB at the peak"), strict=True):
            row.set(xscale="log", yscale="log", ylabel=unit)
            row.set_xticks(AXES[axis], [str(v) for v in AXES[axis]], minor=False)
            row.yaxis.set(
                major_locator=LogLocator(subs=(1, 2, 5)),
                major_formatter=ScalarFormatter(),
                minor_locator=NullLocator(),
            )
            row.xaxis.set_minor_locator(NullLocator())
            row.grid(alpha=0.3)
        grid[1, column].set_xlabel("frames" if axis == "frames" else "height and width")
        grid[0, column].legend(fontsize=8)
    titles = (
        f"{m['date']}, {m['cpu']}, {m['threads']} threads, PyTorch {m['torch']}, "
        f"Python {m['python']}"
        for m in machines
    )
    lines = [textwrap.fill(title, 150) for title in dict.fromkeys(titles)]
    figure.suptitle("\n".join(lines), fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(
    family: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(FAMILIES)}; repeat for more.")
    ] = None,
    most: Annotated[int | None, typer.Option(help="Frames or pixels at most.")] = None,
    rounds: Annotated[int, typer.Option(help="Timings of each.", min=1)] = 5,
    threads: Annotated[int | None, typer.Option(help="PyTorch's threads.", min=1)] = None,
    also: Annotated[
        list[Path] | None, typer.Option(help="Files of earlier runs here, to be drawn as well.")
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
    plot_: Annotated[Path | None, typer.Option("--plot", help="Draw them here.")] = None,
) -> None:
    """Measure time and peak memory against frames and resolution."""
    if unknown := set(family or ()) - FAMILIES.keys():
        names = ", ".join(FAMILIES)
        raise SystemExit(f"--family: expected some of {names}, got {', '.join(sorted(unknown))}")
    if threads:
        torch.set_num_threads(threads)
    machines, rows = [], []
    for path in also or ():
        found = json.loads(path.read_text())
        machines += found["machines"]
        rows += found["rows"]
    earlier = len(rows)
    for name in family or FAMILIES:
        values = [v for v in AXES[FAMILIES[name].axis] if most is None or v <= most]
        for row in measure(name, values, rounds) if values else ():
            size = "×".join(map(str, row["input"][2:]))
            time, peak = f"{row['seconds'] * 1e3:.1f} ms", f"{row['bytes'] / 1e6:.1f} MB"
            print(f"{row['model']:<24}{size:>12}{time:>12}{peak:>11}", flush=True)
            rows.append(row)
    if len(rows) > earlier:
        machines.append(machine(shlex.join(["python", "-m", "benchmarks.growth", *sys.argv[1:]])))
    if json_:
        json_.parent.mkdir(parents=True, exist_ok=True)
        json_.write_text(json.dumps({"machines": machines, "rows": rows}, indent=1) + "\n")
    if plot_:
        plot(plot_, rows, machines)


if __name__ == "__main__":
    typer.run(main)
