"""What every shipped kernel may use: ``python -m tests.triton.budgets`` rewrites ``budgets.json``.

The variants are those of the workloads in ``models.py``, planned for every architecture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from tests.triton.ahead_of_time import ARCHITECTURES, Binary, Variant, build
from tests.triton.models import WORKLOADS

FILE = Path(__file__).with_name("budgets.json")


@cache
def variants() -> dict[tuple[str, str], Variant]:
    """Every variant that is launched, by architecture and text."""
    return dict(sorted(_variants(), key=lambda item: item[0]))


def _variants() -> Iterator[tuple[tuple[str, str], Variant]]:
    for architecture in ARCHITECTURES:
        for workload in WORKLOADS:
            for launch in workload.plan(architecture).launches:
                variant = Variant.of(launch)
                yield (architecture, str(variant)), variant


def build_all() -> dict[str, dict[str, Binary]]:
    """Compile everything, as many at once as there are processors."""
    found: dict[str, dict[str, Binary]] = {architecture: {} for architecture in ARCHITECTURES}
    keys = list(variants())
    # Forked, as kernels cannot be pickled; the children never call PyTorch.
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        for (architecture, text), binary in zip(keys, pool.map(_build, keys), strict=True):
            found[architecture][text] = binary
    return found


def _build(key: tuple[str, str]) -> Binary:
    return build(variants()[key], key[0])


def main() -> None:
    rows = {
        architecture: {text: asdict(binary) for text, binary in binaries.items()}
        for architecture, binaries in build_all().items()
    }
    FILE.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
