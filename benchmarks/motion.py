"""Plot two runs of the motion task, with kernels and without, from their logs.

python -m uniformer train --data motion --out runs/kernels
python -m uniformer train --data motion --out runs/plain --backend reference
python -m benchmarks.motion runs/kernels/log.jsonl runs/plain/log.jsonl --out docs/motion.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

SMOOTHED = 0.8  # weight of the past in the loss's running mean


def read_log(path: Path) -> tuple[list[dict], list[dict]]:
    """The records of steps and of epochs."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return tuple([r for r in records if r["kind"] == kind] for kind in ("step", "epoch"))


def smooth(values: list[float]) -> list[float]:
    """A running mean that forgets."""
    means, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = (
            SMOOTHED * part + (1 - SMOOTHED) * new for part, new in ((mean, value), (weight, 1))
        )
        means.append(mean / weight)
    return means


def main(
    kernels: Annotated[Path, typer.Argument(help="log.jsonl of the run with kernels.")],
    plain: Annotated[Path, typer.Argument(help="log.jsonl of the run with --backend reference.")],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("docs/motion.png"),
) -> None:
    """Loss and accuracy, by the step and by the minute."""
    figure = Figure((10, 6), layout="constrained")
    (loss_by_step, loss_by_time), (top1_by_step, top1_by_time) = figure.subplots(
        2, 2, sharex="col", sharey="row"
    )
    for path, label, style in ((plain, "PyTorch", "-"), (kernels, "kernels", "--")):
        steps, epochs = read_log(path)
        losses = smooth([record["loss"] for record in steps])
        for axes, key, scale in ((loss_by_step, "step", 1), (loss_by_time, "time", 60)):
            axes.plot([record[key] / scale for record in steps], losses, style, label=label)
        for axes, key, scale in ((top1_by_step, "step", 1), (top1_by_time, "time", 60)):
            at = [record[key] / scale for record in epochs]
            axes.plot(at, [record["top1"] for record in epochs], style, marker=".", label=label)
        last = epochs[-1]
        waiting = sum(record["waiting"] for record in steps) / len(steps)
        print(
            f"{label:8} top-1 {last['top1']:.2f} % after {last['time']:.0f} s, "
            f"{waiting:.1%} of them waiting for clips"
        )
    loss_by_step.set_ylabel("loss")
    top1_by_step.set(ylabel="top-1 (%)", xlabel="step", ylim=(0, 100))
    top1_by_time.set_xlabel("minutes of training")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    loss_by_step.legend()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    typer.run(main)
