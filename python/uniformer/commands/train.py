"""``uniformer train``: train a classifier of videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ..engine.sources import Sources


def train(
    data: Annotated[str, typer.Option(help="A list of videos, a folder a class, or motion.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.", file_okay=False)],
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe's name, or a YAML file of settings; motion's own for motion."),
    ] = None,
    validation: Annotated[
        str | None, typer.Option("--val", help="What to validate with after every epoch, likewise.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Where the lists' paths start from; motion's folder.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, key=value; repeat for more.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Weights to start from, also those of images.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, if there is one.")
    ] = False,
    device: options.Device = "auto",
    backend: Annotated[
        str, typer.Option(help="auto, or one for all: reference is plain PyTorch.")
    ] = "auto",
) -> None:
    """Train a classifier of videos.

    Also as torchrun --nproc-per-node 8 -m uniformer train ...; SIGTERM and Ctrl-C save and end the
    run, --resume goes on with it.
    """
    import contextlib
    import os
    from dataclasses import replace

    from uniformer_kernels import BackendError, use_backend
    from uniformer_kernels.backends import BACKENDS

    from ..engine.checkpoint import CHECKPOINT, read_run
    from ..engine.distributed import DistributedError, join_world
    from ..engine.interruption import Interrupted
    from ..engine.settings import SettingsError, make_settings
    from ..engine.sources import MOTION, open_sources
    from ..engine.train import TrainingError, train

    saved = None
    if resume and recipe is None and (out / CHECKPOINT).exists():
        saved = read_run(out / CHECKPOINT)["settings"]
    elif recipe is None and data == MOTION:
        recipe = MOTION
    with options.explained():
        settings = make_settings(recipe, overrides or (), under=saved)
    if backend not in (known := ("auto", *BACKENDS)):
        raise options.CommandError(f"backend: expected one of {', '.join(known)}, got {backend!r}")
    chosen = contextlib.nullcontext() if backend == "auto" else use_backend(backend)
    if start is not None:
        settings = replace(settings, start=os.fsdecode(start))

    def prepare() -> Sources:
        with options.explained():
            return open_sources(settings, data, validation, root)

    try:
        with chosen, join_world(device) as world:
            try:
                train(settings, world.on_main(prepare), out, world=world, resume=resume)
            except Interrupted as interrupted:
                if world.is_main:
                    typer.echo(f"uniformer: {interrupted}", err=True)
                raise typer.Exit(128 + interrupted.signum) from None
    except (SettingsError, TrainingError, DistributedError, BackendError) as error:
        raise options.CommandError(str(error)) from error
