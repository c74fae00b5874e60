"""The GPU half of `docs/performance.md` and of the README, written from result files.

`python -m benchmarks.gpu.document RESULT.json...` does so again; of a stage that several files
have, the last one counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..report import DOCUMENT
from . import sections
from .sections import Found, rows

README = DOCUMENT.parents[1] / "README.md"
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"


def refresh(found: Found | None) -> None:
    """Write both between their markers; what was not measured says so."""
    for path, write in ((DOCUMENT, sections.performance), (README, sections.headlines)):
        head, begin, rest = path.read_text().partition(BEGIN)
        _, end, tail = rest.partition(END)
        if not begin or not end:
            raise SystemExit(f"{path}: expected the lines {BEGIN} and {END}")
        path.write_text(f"{head}{BEGIN}\n\n{write(found)}\n\n{END}{tail}")


def together(results: Sequence[Found]) -> Found:
    """The stages of all, of each the last one's; the machine is that of the last."""
    gpus = {result["machine"]["gpu"] for result in results}
    if len(gpus) > 1:
        raise SystemExit(f"expected results of one GPU, got {' and '.join(sorted(gpus))}")
    stages = {name: stage for result in results for name, stage in result["stages"].items()}
    return {"machine": results[-1]["machine"], "stages": stages}


def show(found: Found) -> None:
    """The measured rows, briefly."""
    for row in rows(found):
        medians = "  ".join(f"{k} {v:.1f}" for k, v in row.get("median_us", {}).items())
        ratio = f"{row['ratio']:5.2f}×" if "ratio" in row else "      "
        failed = "  ".join(f"{k}: {v}" for k, v in row.get("failed", {}).items())
        counts = {k: v for k, v in row.items() if k.endswith("kernels")} or ""
        print(f"{ratio} {row['what']}: {medians} {failed} {counts}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.document", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    refresh(together([json.loads(path.read_text()) for path in parser.parse_args().results]))


if __name__ == "__main__":
    main()
