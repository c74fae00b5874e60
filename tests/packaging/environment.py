"""Environments a package is installed into: PyTorch and what it needs, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CHECK = Path(__file__).with_name("check.py")


def outside(**more: str) -> dict[str, str]:
    """The environment's variables without those that lead to the source tree or to a compiler."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "UNIFORMER"))}
    return {**kept, "CXX": "no-such-compiler", "PYTHONDONTWRITEBYTECODE": "1", **more}


def run(*command: str | Path, folder: Path = ROOT, **variables: str) -> str:
    """What a command prints; a failure shows what it said."""
    result = subprocess.run(
        command, cwd=folder, env=variables or None, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def needed(name: str) -> set[str]:
    """The distributions a distribution needs in this environment, itself included."""
    found, waiting = set(), [name]
    while waiting:
        if (name := waiting.pop()) in found:
            continue
        found.add(name)
        for requirement in map(Requirement, distribution(name).requires or ()):
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


class Environment:
    """A virtual environment with a ``python`` and ``packages``, its folder of packages."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.folder, self.python = folder, folder / "bin" / "python"
        (self.packages,) = folder.glob("lib/python*/site-packages")

    def link(self, *names: str) -> None:
        """Make these distributions of ours available, and what they need: cheaper than copies."""
        for name in set().union(*map(needed, names)):
            found = distribution(name)
            tops = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
            for top in tops:
                if not (self.packages / top).exists():
                    (self.packages / top).symlink_to(found.locate_file(top))

    def install(self, *arguments: str | Path, **variables: str) -> None:
        """``pip install`` here."""
        run(
            *(sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet"),
            *arguments,
            folder=self.folder,
            **(variables or outside()),
        )

    def check(self) -> dict[str, Any]:
        """What ``check.py`` says here, far from the source tree, where there is no compiler."""
        found = json.loads(run(self.python, CHECK, folder=self.folder, **outside(PATH="")))
        assert all(Path(file).is_relative_to(self.packages) for file in found["files"]), found
        return found

    def info(self) -> str:
        return run(
            self.python, "-m", "uniformer_kernels.info", folder=self.folder, **outside(PATH="")
        )
