"""``uniformer predict``: what videos show."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from ..engine.evaluation import Protocol


def predict(
    video: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Video files.")],
    checkpoint: options.Checkpoint,
    model: Annotated[str | None, typer.Option(help="Its name, where no shape tells it.")] = None,
    keyword: options.Keywords = None,
    labels: options.Labels = None,
    top: Annotated[int, typer.Option(help="How many classes to tell.", min=1)] = 5,
    protocol: options.ProtocolName = "official",
    clips: options.Clips = None,
    crops: options.Crops = None,
    average: options.Average = None,
    frames: options.Frames = None,
    size: options.Size = None,
    sampling: options.SamplingName = None,
    stride: options.Stride = None,
    bgr: options.Bgr = False,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Classify videos. One that does not decode gets a line, the others still run; then exit 1."""
    from rich.console import Console
    from rich.progress import track

    from ..engine.distributed import join_world
    from ..engine.evaluation import protocol_for

    net, names = options.load_model(checkpoint, model, keyword, labels)
    with options.explained():
        views = protocol_for(
            net,
            protocol,
            sampling=sampling,
            stride=stride,
            clips=clips,
            crops=crops,
            average=average,
            frames=frames,
            size=size,
            bgr=bgr,
        )
    results, errors = [], Console(stderr=True)
    with join_world(device) as world:
        net.to(world.device)
        for path in track(video, "", console=errors, transient=True, disable=len(video) == 1):
            results.append(_classify(net, path, views, names, top))
            if (error := results[-1].get("error")) and not as_json:
                errors.print(f"uniformer: {error}", markup=False, soft_wrap=True)
            elif not as_json:
                Console().print(_table(results[-1]))
    if as_json:
        json.dump(results, sys.stdout, indent=2)
        print()
    if any("error" in result for result in results):
        raise typer.Exit(1)


def _classify(
    model: nn.Module, path: Path, protocol: Protocol, names: list[str] | None, top: int
) -> dict[str, Any]:
    """The best classes of a video, as JSON has them; or why there are none."""
    from ..data import Broken, Video
    from ..engine.evaluation import score_views

    sample, shown = protocol.dataset([Video(path, 0)])[0], options.printable(path)
    if isinstance(sample, Broken):
        return {"video": shown, "error": sample.reason.encode("utf-8", "replace").decode()}
    with options.explained():
        score = protocol.combine(score_views(model, sample.clips, batch_size=4))
    best = protocol.probabilities(score).topk(min(top, len(score)))
    return {
        "video": shown,
        "classes": [
            {"class": index, "name": names and names[index], "probability": probability}
            for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ],
    }


def _table(result: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(Text(os.path.basename(result["video"])))
    table.add_column("probability", justify="right")
    for entry in result["classes"]:
        name = f"class {entry['class']}" if entry["name"] is None else entry["name"]
        table.add_row(Text(name), f"{100 * entry['probability']:.2f} %")
    return table
