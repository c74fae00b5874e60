"""``uniformer evaluate``: test a model on videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from ..data import Video


def evaluate(
    model: Annotated[str, typer.Argument(help="As `uniformer models` lists them.")],
    checkpoint: options.Checkpoint,
    data: Annotated[str, typer.Option(help="A list of videos, a folder a class, or motion.")],
    root: Annotated[Path | None, typer.Option(help="Where the list's paths start from.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Names of images in folders of frames.")
    ] = None,
    keyword: options.Keywords = None,
    labels: options.Labels = None,
    protocol: options.ProtocolName = "official",
    clips: options.Clips = None,
    crops: options.Crops = None,
    average: options.Average = None,
    frames: options.Frames = None,
    size: options.Size = None,
    sampling: options.SamplingName = None,
    stride: options.Stride = None,
    bgr: options.Bgr = False,
    batch: Annotated[int, typer.Option(help="Clips at a time.", min=1)] = 8,
    workers: Annotated[int, typer.Option(help="Processes that decode.", min=0)] = 2,
    device: options.Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for figures and confusion matrix.", file_okay=False)
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Test a model on videos: several clips of each, several crops of a clip, one score.

    Under torchrun every process tests a part. Videos that do not decode are counted and listed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from ..engine.distributed import join_world
    from ..engine.evaluation import evaluate, protocol_for
    from ..engine.files import check_folder, replacing
    from ..engine.metrics import write_confusion

    net, class_names = options.load_model(checkpoint, model, keyword, labels)
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
    with join_world(device) as world:
        if out is not None:
            with options.explained():
                world.on_main(lambda: check_folder(out))
        videos = world.on_main(
            lambda: _videos(data, root, template, class_names or net.num_classes)
        )
        columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        hidden = not world.is_main
        with Progress(
            *columns, console=Console(stderr=True), transient=True, disable=hidden
        ) as bar:
            task = bar.add_task("", total=len(videos[world.rank :: world.size]))
            with options.explained():
                result = evaluate(
                    net.to(world.device),
                    videos,
                    views,
                    batch_size=batch,
                    workers=workers,
                    world=world,
                    advance=lambda count: bar.advance(task, count),
                )
        if not world.is_main:
            return
    figures: dict[str, Any] = {
        "model": model,
        "checkpoint": options.printable(checkpoint),
        "protocol": protocol,
        "views": views.summary(),
        **result.summary(),
    }
    for entry in figures["broken"]:
        entry["path"] = options.printable(entry["path"])
        entry["reason"] = entry["reason"].encode("utf-8", "replace").decode()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / "evaluation.json") as path:
            path.write_text(json.dumps(figures, indent=2) + "\n")
        write_confusion(out, result.accuracy.confusion, class_names)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _show(figures)
    if not result.accuracy.count:
        raise options.CommandError(f"data: expected videos that decode, got {data!r}: none does")


def _videos(
    data: str, root: Path | None, template: str | None, classes: list[str] | int
) -> list[Video]:
    """The videos to test on, labelled as the model's classes are: names of them, or how many."""
    from ..data import VideoListError, motion, read_videos
    from ..data.lists import TEMPLATE
    from ..engine.sources import MOTION

    count = classes if isinstance(classes, int) else len(classes)
    if data == MOTION:
        with options.explained():
            videos, folders = motion(root or Path(MOTION), split="val")
    else:
        videos, folders = read_videos(
            data, root=root, template=template or TEMPLATE, num_classes=count
        )
    if folders is None:  # a list: its labels are the model's
        return videos
    if isinstance(classes, int):
        if len(folders) != count:
            raise VideoListError(
                f"data: expected a folder for each of the model's {count} classes, whose names "
                f"are not known (--labels tells them), got {len(folders)}"
            )
        return videos
    if unknown := sorted(set(folders) - set(classes)):
        raise VideoListError(f"data: expected folders named as the model's classes, got {unknown}")
    places = [classes.index(name) for name in folders]
    return [video._replace(label=places[video.label]) for video in videos]


def _show(figures: dict) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    views, console = figures["views"], Console()
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("videos", "top-1", "top-5", "mean of classes"):
        table.add_column(column, justify="right")
    percent = (f"{figures[name]:.2f} %" for name in ("top1", "top5", "mean_class"))
    table.add_row(f"{figures['videos']:,}", *percent)
    console.print(table)
    console.print(
        f"{figures['model']}, {views['frames']}×{views['size']}², crops × clips: "
        f"{views['crops']} × {views['clips']}, {views['sampling']} sampling"
        f"{', stride ' + str(views['stride']) if 'stride' in views else ''}, "
        f"mean of {views['average']}",
        style="dim",
    )
    if broken := figures["broken"]:
        console.print(f"Not counted, for they do not decode: {len(broken)}", style="yellow")
        for entry in broken:
            console.print(f"  {escape(entry['reason'])}", soft_wrap=True)
