"""Build, check and measure on a GPU in one command: `python -m benchmarks.gpu`.

Every stage is a process of its own with a limit on its time; one that fails or takes too long
loses neither what the others found nor its own rows so far. Stages may be run apart: what the same
commit measured before on the same day stays in the result file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from uniformer_kernels.bench.machine import machine
from uniformer_kernels.triton import tuning

from . import document

ROOT = Path(__file__).parents[2]
_PYTHON = sys.executable
_TESTS = [_PYTHON, "-m", "pytest", "-m", "gpu", "-rs"]
# Triton compiles for every test anew, one thread a process.
_SIDE_BY_SIDE = ["--numprocesses=logical", "--maxprocesses=16", "--dist=worksteal"]


def _watched(tool: str) -> list[str]:
    """Under compute-sanitizer: our CUDA C++ kernels, and no other."""
    return [
        *("compute-sanitizer", "--tool", tool, "--kernel-name", "kns=_ZN2uk4cuda"),
        *("--error-exitcode", "1", *_TESTS, "-x"),
        *("tests/gpu/test_depthwise_conv.py", "tests/gpu/test_tokens.py"),
        *("-k", "(values_and or moments) and (cuda or products or tma)"),
    ]


COMMANDS: dict[str, list[str]] = {
    "build": [_PYTHON, "setup.py", "--quiet", "build_ext", "--inplace"],
    "check": [*_TESTS, *_SIDE_BY_SIDE, "tests/gpu"],
    "memory": _watched("memcheck"),
    "races": _watched("racecheck"),
    "barriers": _watched("synccheck"),
    "winners": [_PYTHON, "-m", "uniformer_kernels.tune", "--winners"],
    "tune": [_PYTHON, "-m", "uniformer_kernels.tune", "--dtype", "bfloat16"],
}
LIMITS = {  # seconds at most; the first stages are what the others rest on
    "build": 240,
    "compile": 200,
    "check": 200,
    "winners": 120,
    "ceilings": 20,
    "operators": 200,
    "launches": 40,
    "models": 200,
    "memory": 150,
    "races": 200,
    "barriers": 120,
    # Only if asked for: they fill commands of their own.
    "more_models": 480,
    "experiments": 300,
    "tables": 200,
    "evidence": 400,
    "tune": 500,
}
_APART = ("more_models", "experiments", "tables", "evidence", "tune")
_MODULES = {"experiments": "benchmarks.gpu_experiments"}  # of stages that are not called as theirs
_NOT_BEGUN = {"ok": False, "exit": "not begun: the minutes were over"}
_ENVIRONMENT = {
    # Without PyTorch's cache a tensor ends where its memory does.
    "memory": {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    # Its compiler would start 16 processes in each of theirs.
    "compile": {"TORCHINDUCTOR_COMPILE_THREADS": "2"},
    "more_models": {"TORCHINDUCTOR_COMPILE_THREADS": "2"},
    "check": {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "stages", nargs="*", metavar="stage", help=f"of {', '.join(LIMITS)}; all but the last five"
    )
    parser.add_argument(
        "--minutes", type=float, default=9, help="of all stages; the last ones get what is left"
    )
    parser.add_argument("--commit", help="what is measured, where there is no checkout")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # of a stage, from its parent
    options = parser.parse_args()
    if unknown := set(options.stages) - LIMITS.keys():
        parser.error(f"stage: expected some of {', '.join(LIMITS)}, got {', '.join(unknown)}")
    if options.rows:
        (stage,) = options.stages
        rows = []
        for row in import_module(_MODULES.get(stage, f".{stage}"), __package__).run():
            rows.append(row)
            _write(options.rows, rows)
    else:
        wanted = options.stages or LIMITS.keys() - _APART
        stages = [stage for stage in LIMITS if stage in wanted]
        sys.exit(run(stages, options.out, options.minutes * 60, options.commit))


def run(stages: Sequence[str], out: Path, seconds: float, commit: str | None = None) -> int:
    """Run stages in their order, in so many seconds; 1 if one of them failed or was not begun."""
    end = time.monotonic() + seconds
    gpu = _gpu()
    where = machine("make gpu") | gpu | ({"commit": commit} if commit else {})
    commit, *_ = where["commit"].split("+")  # the table and the document change on the way
    folder = out / gpu["gpu"].lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / f"{datetime.date.today().isoformat()}-{commit}.json"
    found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {"stages": {}}
    found["machine"] = where
    # The CUDA kernels are compiled for this GPU alone, which takes a third of the time.
    os.environ.setdefault("UNIFORMER_KERNELS_CUDA_ARCHS", gpu["capability"].replace(".", ""))
    for stage in stages:
        left = end - time.monotonic()
        if left > 0:
            found["stages"][stage] = _stage(stage, folder, min(LIMITS[stage], left))
        else:
            print(f"{stage:<11} not begun", flush=True)
            found["stages"].setdefault(stage, _NOT_BEGUN)  # what it found before stays
        _write(result, found)
        if stage in ("winners", "tune"):
            shutil.copy(tuning.TABLE, folder)
    document.refresh(found)
    document.show(found)
    print(f"written to {result}")
    return int(any(not found["stages"][stage]["ok"] for stage in stages))


def _write(path: Path, value: Any) -> None:
    """At once: who is stopped meanwhile leaves what was there before."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def _gpu() -> dict[str, str]:
    """Name, memory, driver and capability; an error where there is no GPU."""
    columns = "name,memory.total,driver_version,compute_cap"
    query = ["nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"expected an NVIDIA GPU, found none ({error})") from error
    name, memory, driver, capability = line.splitlines()[0].split(", ")
    return {"gpu": name, "gpu_memory": memory, "driver": driver, "capability": capability}


def _stage(stage: str, folder: Path, limit: float) -> dict[str, Any]:
    """What a stage printed last, how long it took, and its rows.

    Args:
        stage: its name.
        folder: for its files on the way.
        limit: seconds, past which it is stopped.
    """
    rows = folder / f"{stage}.rows"
    command = COMMANDS.get(stage, [_PYTHON, "-m", __package__, stage, "--rows", str(rows)])
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    log = folder / f"{stage}.log"
    with log.open("w") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                # The latter lets cuBLAS run where tests ask for determinism.
                env=os.environ
                | {"PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
                | _ENVIRONMENT.get(stage, {}),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # stopped as one, so that nothing is left on the GPU
            )
            code: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = f"stopped after {limit:.0f} s"
        except OSError as error:
            code = str(error)
    text = log.read_text(errors="replace")
    if code == 0 and "pytest" in command and " passed" not in text:
        code = "every test was skipped"
    seconds = time.perf_counter() - start
    print(
        f"{stage:<11} {'ok' if code == 0 else f'failed ({code})':<24} {seconds:6.1f} s", flush=True
    )
    found: dict[str, Any] = {"ok": code == 0, "exit": code, "seconds": round(seconds, 1)}
    if rows.exists():
        found["rows"] = json.loads(rows.read_text())
        rows.unlink()
    rows.with_suffix(".part").unlink(missing_ok=True)
    found["log"] = text.splitlines()[-30:]
    log.unlink()
    return found


if __name__ == "__main__":
    main()
