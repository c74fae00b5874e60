"""This checkout against another revision of it: ``python -m uniformer_kernels.bench --against``.

Both are measured by the cases and clocks of this checkout, in a process each that take turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from . import table
from .case import Case
from .ceilings import name
from .machine import revision
from .measure import Setting
from .timing import Samples

ROOT = Path(__file__).parents[2]
_WORKER = Path(__file__).with_name("worker.py")
_SOURCES = ("csrc", "setup.py")  # what the extension is built from
_LINES = 30  # of a failed build's output that are shown


class RevisionError(Exception):
    """Two revisions cannot be compared; says why."""


@dataclass
class Worker:
    """A process that measures one revision, sample by sample."""

    questions: IO[str]
    answers: IO[str]

    def ask(self, **question: Any) -> dict[str, Any]:
        """Its answer.

        Raises:
            RevisionError: it died.
        """
        try:
            self.questions.write(json.dumps(question) + "\n")
            self.questions.flush()
        except BrokenPipeError:
            pass  # what it said is in its error stream
        if not (answer := self.answers.readline()):
            raise RevisionError("a measuring process ended: see above")
        return json.loads(answer)


def revisions(
    revision_: str,
    todo: Sequence[tuple[Case, Any, str]],
    setting: Setting,
    machine: dict[str, Any],
    json_path: Path | None,
    root: Path = ROOT,
) -> list[dict[str, Any]]:
    """Build a revision beside this checkout, time both in turn, show the ratios.

    Args:
        revision_: anything git takes for a commit.
        todo: case, dtype and pass.
        setting: rounds and device.
        machine: where this is.
        json_path: where every figure goes, None for nowhere.
        root: of the checkout.

    Raises:
        RevisionError: this is no checkout, there is no such revision, or it cannot be built.
    """
    commit = resolve(revision_, root)
    console = Console(stderr=True)
    rows = []
    with contextlib.ExitStack() as stack:
        with console.status(f"building {commit[:12]}"):
            tree = stack.enter_context(checkout(commit, root))
        this, that = (stack.enter_context(_worker(t, machine["threads"])) for t in (root, tree))
        progress = stack.enter_context(Progress(console=console, transient=True))
        for case, dtype, pass_ in progress.track(todo, description=""):
            rows.append(_compared(case, name(dtype), pass_, setting, this, that))
    machine = machine | {"against": commit}
    _show(rows, commit[:12], machine)
    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return rows


def resolve(revision_: str, root: Path) -> str:
    """The commit a revision means.

    Raises:
        RevisionError: there is no git or no checkout here, or no such revision.
    """
    if shutil.which("git") is None:
        raise RevisionError("git is not installed")
    if revision(root) == "none":
        raise RevisionError(
            f"expected a git checkout of the project, got {root}: an installed package"
        )
    found = _git(
        root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision_}^{{commit}}"
    )
    if found.returncode:
        raise RevisionError(
            f"expected a revision of the project, got {revision_!r}: git knows none"
        )
    return found.stdout.strip()


@contextlib.contextmanager
def checkout(commit: str, root: Path) -> Iterator[Path]:
    """A work tree of a commit with its extension, for as long as the ``with`` lasts.

    The extension is copied where its sources are the same here, and built elsewhere.

    Raises:
        RevisionError: git or the build fails.
    """
    with tempfile.TemporaryDirectory(prefix="uniformer_kernels-") as folder:
        tree = Path(folder) / commit[:12]
        added = _git(root, "worktree", "add", "--detach", str(tree), commit)
        if added.returncode:
            raise RevisionError(f"git worktree failed:\n{added.stderr}")
        try:
            _build(commit, root, tree)
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _build(commit: str, root: Path, tree: Path) -> None:
    built = list((root / "uniformer_kernels").glob("*.so"))
    if built and _git(root, "diff", "--quiet", commit, "--", *_SOURCES).returncode == 0:
        for path in built:
            shutil.copy2(path, tree / "uniformer_kernels")
        return
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    build = subprocess.run(
        command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if build.returncode:
        last = "\n".join(build.stdout.splitlines()[-_LINES:])
        raise RevisionError(f"{commit[:12]} cannot be built:\n{last}")


def _git(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)


@contextlib.contextmanager
def _worker(tree: Path, threads: int) -> Iterator[Worker]:
    """A process that has the package of a work tree, and the measuring of this one."""
    path = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(_WORKER), str(tree), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert process.stdin  # a pipe
    assert process.stdout
    try:
        yield Worker(process.stdin, process.stdout)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


def _compared(
    case: Case, dtype: str, pass_: str, setting: Setting, this: Worker, that: Worker
) -> dict[str, Any]:
    """A row: seconds of both, and how many times longer the other revision takes."""
    row: dict[str, Any] = {
        "operator": case.operator,
        "case": case.name,
        "dtype": dtype,
        "pass": pass_,
    }
    question = {
        "operator": case.operator,
        "case": case.name,
        "batch": setting.batch,
        "dtype": dtype,
        "pass": pass_,
        "device": str(setting.device),
        "sample": setting.sample,
    }
    ready = [worker.ask(**question) for worker in (this, that)]
    if reasons := [answer["refused"] for answer in ready if answer["refused"]]:
        return row | {"refused": reasons[0]}
    seconds: tuple[list[float], list[float]] = [], []
    turns = list(zip((this, that), seconds, strict=True))
    for _ in range(setting.rounds):
        for worker, found in turns:
            found.append(worker.ask()["seconds"])
        turns.reverse()
    ours, theirs = map(Samples, seconds)
    ratio = theirs.over(ours)
    return row | {
        "refused": None,
        "seconds": ours.median,
        "theirs": theirs.median,
        "ratio": ratio.median,
        "ratio_quartiles": ratio.quartiles,
    }


def _show(rows: Sequence[dict[str, Any]], commit: str, machine: dict[str, Any]) -> None:
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("", no_wrap=True)
    for column in (commit, "here", "ratio", "quartiles"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        label = f"{row['operator']}: {row['case']}, {row['dtype']}, {row['pass']}"
        if row["refused"]:
            shown.add_row(f"{label}: refused: {row['refused']}", style="yellow")
            continue
        low, high = row["ratio_quartiles"]
        times = (table.duration(row[key]) for key in ("theirs", "seconds"))
        shown.add_row(label, *times, f"{row['ratio']:.2f}×", f"{low:.2f} – {high:.2f}")
    console = table.console()
    console.print(shown)
    console.print(
        f"{machine['date']}, {machine['cpu']}, {machine['threads']} threads, PyTorch "
        f"{machine['torch']}: {machine['command']}",
        style="dim",
    )
