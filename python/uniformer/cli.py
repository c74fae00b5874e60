"""The command line: ``uniformer``, the same as ``python -m uniformer``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from .commands.bench import bench
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.options import CommandError, explained
from .commands.predict import predict
from .commands.profile import profile
from .commands.train import train
from .commands.visualize import visualize
from .data import VideoError, VideoListError
from .engine.files import check_folder
from .models.facts import FACTS
from .registry import list_models
from .weights import CheckpointError

app = typer.Typer(
    help="UniFormer models on fast kernels.", no_args_is_help=True, add_completion=False
)


@app.command()
def demo(
    video: Annotated[
        Path | None, typer.Argument(help="A video file; a moving scene is rendered without one.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Official weights; random without one.")
    ] = None,
    classes: Annotated[int, typer.Option(help="Classes of the checkpoint.", min=1)] = 400,
    out: Annotated[
        Path, typer.Option(help="Folder for chart and figures.", file_okay=False)
    ] = Path("demo"),
) -> None:
    """Classify a video and train on it, in plain PyTorch and on the kernels; compare both."""
    from .demo.run import Settings, run_demo  # matplotlib takes a while: not for the other commands

    with explained():
        check_folder(out)
    run_demo(video, checkpoint, out, Settings(num_classes=classes))


@app.command()
def models(pattern: Annotated[str, typer.Argument(help="Like '*video*'.")] = "*") -> None:
    """List the models: parameters, cost for one input, published accuracy (box AP, if dense)."""
    table = Table("model", "parameters", "input", "GMACs", "top-1", box=box.SIMPLE_HEAD)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for name in list_models(pattern):
        shown = name
        for facts in FACTS[name]:
            size, score = "×".join(map(str, facts.input_size)), facts.published[0].scores
            macs, accuracy = f"{facts.macs / 1e9:.2f}", next(iter(score.values()))
            table.add_row(shown, f"{facts.parameters:,}", size, macs, str(accuracy))
            shown = ""
    Console().print(table)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Weights in any dialect.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .safetensors file.")],
    model: Annotated[str | None, typer.Option(help="Its name, where no shape tells it.")] = None,
    keyword: Annotated[
        list[str] | None, typer.Option(help="Of the model, like num_frames=16; repeat for more.")
    ] = None,
    head: Annotated[str, typer.Option(help="take or drop the classifier.")] = "take",
    inflation: Annotated[
        str | None, typer.Option(help="average or centre: image weights in a video model.")
    ] = None,
    classes_from: Annotated[
        Path | None, typer.Option(help="File of the class names of IN, in order.")
    ] = None,
    classes_to: Annotated[
        Path | None, typer.Option(help="File of the names, or rows, that OUT shall have.")
    ] = None,
) -> None:
    """Write weights as safetensors under the official names, with what their shapes do not tell."""
    from .weights.convert import convert_checkpoint

    given = {}
    for entry in keyword or ():
        name, _, value = entry.partition("=")
        try:
            given[name] = json.loads(value)
        except ValueError:
            given[name] = value
    print(
        convert_checkpoint(
            source,
            out,
            model=model,
            keywords=given,
            head=head,
            inflation=inflation,
            classes_from=classes_from,
            classes_to=classes_to,
        )
    )


app.command()(bench)
app.command()(evaluate)
app.command()(export)
app.command()(predict)
app.command()(profile)
app.command()(train)
app.command()(visualize)


def main() -> None:
    """Run the command line; bad input ends it with a message, not with a traceback."""
    try:
        app()
    except (CheckpointError, CommandError, VideoError, VideoListError) as error:
        sys.exit(f"uniformer: {error}")
