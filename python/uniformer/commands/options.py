"""What the commands share: options, the model they are about, how they end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

Checkpoint = Annotated[Path, typer.Option(help="Weights in any dialect, .pth or .safetensors.")]
OptionalCheckpoint = Annotated[
    Path | None, typer.Option(help="Weights in any dialect; random ones without.")
]
Keywords = Annotated[
    list[str] | None,
    typer.Option("--keyword", help="Of the model, like num_frames=16; repeat for more."),
]
Labels = Annotated[
    Path | None, typer.Option(help="File of class names: a name a line, or name<TAB>number.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ProtocolName = Annotated[str, typer.Option(help="official or mmaction2: sets what is not given.")]
Clips = Annotated[int | None, typer.Option(help="Clips of a video.", min=1)]
Crops = Annotated[int | None, typer.Option(help="Crops of a clip: 1 or 3.")]
Frames = Annotated[int | None, typer.Option(help="Frames of a clip.", min=1)]
Size = Annotated[int | None, typer.Option(help="Height and width of a crop.", min=1)]
SamplingName = Annotated[str | None, typer.Option(help="dense or uniform.")]
Stride = Annotated[int | None, typer.Option(help="Of dense sampling, in frames.", min=1)]
Average = Annotated[str | None, typer.Option(help="Mean over views: logits or probabilities.")]
Bgr = Annotated[bool, typer.Option("--bgr", help="Blue first: Something-Something, HMDB51.")]


class CommandError(Exception):
    """What was typed cannot be done; says why."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Errors of arguments, and of packages that are missing, as the command's own."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise CommandError(str(error)) from error


def parse_keywords(entries: Sequence[str] | None) -> dict[str, Any]:
    """``name=value`` each, the value as JSON where it is any.

    Raises:
        CommandError: an entry has no ``=``.
    """
    given = {}
    for entry in entries or ():
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise CommandError(f"keyword: expected name=value, got {entry!r}")
        try:
            given[name] = json.loads(value)
        except ValueError:
            given[name] = value
    return given


def load_model(
    checkpoint: Path, name: str | None, keywords: Sequence[str] | None, labels: Path | None = None
) -> tuple[nn.Module, list[str] | None]:
    """The model of a checkpoint, in evaluation, and the names of its classes if anybody tells.

    Raises:
        CheckpointError: as :func:`~uniformer.weights.convert.model_from_checkpoint`; or the labels
            are not one for each class.
    """
    from ..weights.convert import model_from_checkpoint

    model, report = model_from_checkpoint(checkpoint, model=name, keywords=parse_keywords(keywords))
    if labels is None:
        return model.eval(), list(report.class_names) if report.class_names else None
    return model.eval(), read_labels(labels, model.num_classes)


def read_labels(path: Path, num_classes: int) -> list[str]:
    """Names of classes from a file.

    Raises:
        CheckpointError: it cannot be read, or has another number of names than ``num_classes``.
    """
    from ..weights import CheckpointError
    from ..weights.classes import read_classes

    names = read_classes(path)
    if len(names) != num_classes:
        raise CheckpointError(
            f"labels: expected {num_classes} names, one for each of the model's classes, "
            f"got {os.fsdecode(path)!r}: {len(names)}"
        )
    return [str(name) for name in names]


def new_model(
    name: str, checkpoint: Path | None, keywords: Sequence[str] | None, classes: int | None = None
) -> nn.Module:
    """A model by name, with weights or random ones of a fixed seed, in evaluation."""
    import torch

    from ..registry import create_model

    given = parse_keywords(keywords)
    if classes is not None:
        given["num_classes"] = classes
    if checkpoint is not None:
        from ..weights.convert import model_from_checkpoint

        return model_from_checkpoint(checkpoint, model=name, keywords=given)[0].eval()
    torch.manual_seed(0)
    try:
        return create_model(name, **given).eval()
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error


def printable(path: str | os.PathLike) -> str:
    """A path as text that every terminal and JSON take, whatever its bytes are."""
    return os.fsencode(path).decode("utf-8", "replace")
