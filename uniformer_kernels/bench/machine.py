"""Where and with what figures were measured."""

from __future__ import annotations

import datetime
import platform
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch

import uniformer_kernels


def machine(command: str) -> dict[str, Any]:
    """Date, processor, versions, and the commit where there is a checkout.

    Args:
        command: what was typed.
    """
    commit = revision(Path(uniformer_kernels.__file__).parent)
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": cpu(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "uniformer_kernels": uniformer_kernels.__version__,
        "commit": commit,
        "command": command,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def revision(folder: Path) -> str:
    """The commit a folder is checked out at, ``+changes`` if it has any, or ``none``."""
    git = partial(subprocess.run, cwd=folder, capture_output=True, text=True, check=False)
    try:
        if git(["git", "ls-files", "--error-unmatch", "."]).returncode:
            return "none"  # an installed package, in whoever's checkout it may lie
        commit = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except OSError:
        return "none"
    return commit + ("+changes" if changed else "")


def cpu() -> str:
    """The processor's name and extensions that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    info = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    name = info.get("model name", platform.machine())
    if "cpu family" in info:
        name += f" (family {info['cpu family']}, model {info['model']})"
    widest = next((e for e in ("avx512f", "avx2") if e in info.get("flags", "").split()), "")
    return f"{name}, {widest}" if widest else name
