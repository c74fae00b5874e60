"""What Nsight Compute says of one launch: the chip's units against their peaks, and its advice."""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_SECTIONS = (
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "ComputeWorkloadAnalysis",
    "SchedulerStats",
    "WarpStateStats",
    "LaunchStats",
    "Occupancy",
)


def base(name: str) -> str:
    """A kernel's name without namespaces, template arguments and parameters, as `ncu` filters."""
    bare = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.split(r"[<(]", bare, maxsplit=1)[0].rpartition("::")[2]


def look(name: str, launch: int, program: Sequence[str]) -> dict[str, Any]:
    """Figures and advice on one launch, or why there are none.

    Args:
        name: the kernel's, bare.
        launch: how many of this name precede it where the program profiles.
        program: to be run, with ``torch.cuda.profiler.start`` before what counts.
    """
    command = [
        *("ncu", "--clock-control", "none", "--profile-from-start", "off"),
        *("--kernel-name-base", "function", "--kernel-name", name),
        *("--launch-skip", str(launch), "--launch-count", "1", "--csv", "--page", "details"),
        *(word for section in _SECTIONS for word in ("--section", section)),
        *program,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"failed": {"ncu": str(error)[-200:]}}
    figures, advice = read(done.stdout.splitlines())
    if not figures:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"exit {done.returncode}"]
        return {"failed": {"ncu": said[-1][:200]}}
    return {"figures": figures, "advice": advice}


def read(lines: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Figures by name, and advice, of what `ncu --csv --page details` printed."""
    figures, advice = {}, []
    for found in csv.DictReader(line for line in lines if line.startswith('"')):
        if found["Metric Name"]:
            figures[found["Metric Name"]] = (
                f"{found['Metric Value']} {found['Metric Unit']}".strip()
            )
        if found.get("Rule Description"):
            advice.append(found["Rule Description"])
    return figures, advice
