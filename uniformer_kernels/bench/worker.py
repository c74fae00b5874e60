"""Measures the package of one work tree with the measuring of this one; started by ``against``.

A line of JSON at a time: a case first, then an empty question for each sample.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


def _this_measuring() -> None:
    """`uniformer_kernels.bench` from this file's folder, whatever the package there brings."""
    import uniformer_kernels  # noqa: F401 of the work tree, first on the path

    folder = Path(__file__).parent
    spec = importlib.util.spec_from_file_location(
        "uniformer_kernels.bench", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec  # there is such a file
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


def _answers(questions: Iterable[str]) -> Iterator[dict[str, Any]]:
    import torch

    from uniformer_kernels.bench import timing
    from uniformer_kernels.bench.cases import find
    from uniformer_kernels.bench.measure import BACKWARD, Setting, stopwatch

    timing.keep_heap()
    watch: Callable[[], float] | None = None
    for line in questions:
        if not (question := json.loads(line)) and watch:
            yield {"seconds": watch()}
            continue
        watch, refused = None, None  # lets the last case's buffers go
        case = find(question["operator"], question["case"], batch=question["batch"])
        setting = Setting(torch.device(question["device"]), sample=question["sample"])
        dtype, backward = getattr(torch, question["dtype"]), question["pass"] == BACKWARD
        try:
            watch = stopwatch(case, dtype, setting, backward=backward)
        except Exception as error:  # an older revision may lack the operator or an argument
            refused = str(error)
        yield {"refused": refused}


def main() -> None:
    tree = Path(sys.argv[1]).resolve()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything prints is no answer
    sys.path[0] = str(tree)  # it was this file's folder
    import uniformer_kernels

    if Path(uniformer_kernels.__file__).resolve().parents[1] != tree:
        sys.exit(f"expected uniformer_kernels of {tree}, got {uniformer_kernels.__file__}")
    import torch

    torch.set_num_threads(int(sys.argv[2]))
    _this_measuring()
    for answer in _answers(iter(sys.stdin)):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
