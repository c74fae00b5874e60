"""What every shipped kernel may use: ``make budgets`` rewrites ``budgets.json``.

The variants are those of some workloads in ``benchmarks/workloads.py``, and of prepared local
blocks in 16 and 32 bits, planned for every architecture; a row has registers, stack, shared memory
and whether there are tensor-core instructions. Compiling all of them takes a quarter of an hour, so
only those whose file has changed are compiled again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from functools import cache
from hashlib import sha256
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.workloads import BUDGETED
from tests.triton.ahead_of_time import ARCHITECTURES, Binary, Variant, build
from uniformer_kernels.triton.plan import planning
from uniformer_kernels.tune.calls import local_blocks

FILE = Path(__file__).with_name("budgets.json")


@cache
def variants() -> dict[tuple[str, str], Variant]:
    """Every variant that is launched, by architecture and text; of one text the first."""
    found: dict[tuple[str, str], Variant] = {}
    for key, variant in _variants():
        found.setdefault(key, variant)
    return dict(sorted(found.items()))


def _variants() -> Iterator[tuple[tuple[str, str], Variant]]:
    for architecture in ARCHITECTURES:
        plans = [workload.plan(architecture) for workload in BUDGETED]
        for dtype in (torch.bfloat16, torch.float32):
            with planning(architecture) as plan:
                local_blocks(8, dtype)
            plans.append(plan)
        for launch in chain.from_iterable(plan.launches for plan in plans):
            variant = Variant.of(launch)
            yield (architecture, str(variant)), variant


def sources() -> dict[str, str]:
    """A digest of the kernels in every file: where it changes, so may what they need."""
    found = {v.file: v.source for v in variants().values()}
    return {file: sha256(found[file].encode()).hexdigest()[:16] for file in sorted(found)}


def budgets() -> tuple[dict[str, str], dict[tuple[str, str], Binary]]:
    """The committed file: digests, and what every variant may use."""
    if not FILE.exists():
        return {}, {}
    data = json.loads(FILE.read_text())
    rows = {(a, text): Binary(*row) for a in ARCHITECTURES for text, row in data[a].items()}
    return data["sources"], rows


def build_all(keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], Binary]:
    """Compile variants, as many at once as there are processors."""
    # Forked, as kernels cannot be pickled; the children never call PyTorch.
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        return dict(zip(keys, pool.map(_build, keys), strict=True))


def _build(key: tuple[str, str]) -> Binary:
    return build(variants()[key], key[0])


def main() -> None:
    """Compile what is new or whose file has changed, and rewrite the budgets."""
    before, known = budgets()
    changed = {file for file, digest in sources().items() if before.get(file) != digest}
    stale = [k for k, v in variants().items() if k not in known or v.file in changed]
    known |= build_all(stale)
    rows = {a: {t: astuple(known[a, t]) for b, t in variants() if a == b} for a in ARCHITECTURES}
    FILE.write_text(_json({"sources": sources()} | rows))
    print(f"{len(stale)} of {len(variants())} variants compiled")


def _json(data: dict[str, dict[str, Any]]) -> str:
    """A line a variant."""
    parts = []
    for name, rows in data.items():
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items())
        parts.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
