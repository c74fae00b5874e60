"""``python -m uniformer_kernels.bench``: measure the operators on this machine."""

from __future__ import annotations

import shlex
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

try:
    import rich  # noqa: F401
    import typer
except ImportError as error:
    sys.exit(f"{error.name} is missing: pip install 'uniformer-kernels[bench]'")

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16", "float64")


def main(
    op: Annotated[str | None, typer.Argument(help="An operator; all without one.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also time what others offer, not the reference only.")
    ] = False,
    only: Annotated[str, typer.Option(help="Cases with this in their name.")] = "",
    dtype: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(DTYPES)}; repeat for more.")
    ] = None,
    pass_: Annotated[
        str, typer.Option("--pass", help="forward, forward+backward or both.")
    ] = "both",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch: Annotated[
        int | None, typer.Option(help="Clips of a call; 1 on a CPU, 16 on a GPU.", min=1)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="PyTorch's threads.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="Timings of each rival.", min=1)] = 21,
    sample: Annotated[float, typer.Option(help="Seconds a timing lasts at least.", min=0)] = 0.02,
    plot: Annotated[Path | None, typer.Option(help="Draw the roofline into this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write every figure into this file.")] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Compare this checkout with another revision of it."),
    ] = None,
) -> None:
    """Time every operator at the papers' shapes, beside this machine's own ceilings."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from . import ceilings, roofline, table, timing
    from .cases import cases
    from .machine import machine
    from .measure import BACKWARD, PASSES, Setting, measure

    try:
        chosen = _device(device)
        dtypes = [getattr(torch, _known("--dtype", name, DTYPES)) for name in dtype or DTYPES[:2]]
        passes = PASSES if pass_ == "both" else [_known("--pass", pass_, PASSES)]
        batch = batch or (16 if chosen.type == "cuda" else 1)
        found = list(cases(op, batch=batch))
        _check_plot(plot, against)
        for option, path in {"--plot": plot, "--json": json}.items():
            _check_file(option, path)
    except ValueError as error:
        sys.exit(str(error))
    if not (found := [case for case in found if only in case.name]):
        sys.exit(f"--only: no case has {only!r} in its name")
    timing.keep_heap()
    if threads:
        torch.set_num_threads(threads)
    todo = [
        (case, one, pass_)
        for case in found
        for one in dtypes
        for pass_ in passes
        if pass_ != BACKWARD or case.differentiable()
    ]
    typed = shlex.join(["python", "-m", __package__, *sys.argv[1:]])
    where, setting = machine(typed), Setting(chosen, compare, rounds, sample, batch)
    if against is not None:
        from .against import RevisionError, revisions

        try:
            revisions(against, todo, setting, where, json)
        except RevisionError as error:
            sys.exit(f"--against: {error}")
        return
    console, rows = table.console(), []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("ceilings", total=len(todo))
        limits = ceilings.measure(chosen, dtypes)
        for case, one, pass_ in todo:
            progress.update(task, description=f"{case.operator}: {case.name}, {pass_}")
            rows += measure(case, one, pass_, setting, limits)
            progress.advance(task)
    table.show(console, rows)
    console.print(table.conditions(where, limits), style="dim")
    if json:
        table.write(json, where, limits, rows)
    if plot:
        roofline.plot(plot, rows, limits, where)


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(_known("--device", name, ("cpu", "cuda")))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: expected a GPU that PyTorch can use, found none")
    return device


def _check_plot(plot: Path | None, against: str | None) -> None:
    if plot is None:
        return
    if against is not None:
        raise ValueError("--plot: expected none with --against, which draws no roofline")
    if find_spec("matplotlib") is None:
        raise ValueError("--plot: matplotlib is missing: pip install 'uniformer-kernels[bench]'")
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if plot.suffix[1:].lower() not in kinds:
        raise ValueError(f"--plot: expected a name with .{', .'.join(kinds)}, got {str(plot)!r}")


def _check_file(option: str, path: Path | None) -> None:
    """Before the measuring, whose results would be lost."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{option}: cannot write to {str(path.parent)!r}: {error}") from error
    if path.is_dir():
        raise ValueError(f"{option}: expected a file, got the folder {str(path)!r}")


def _known(option: str, name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise ValueError(f"{option}: expected one of {', '.join(names)}, got {name!r}")
    return name


if __name__ == "__main__":
    typer.run(main)
