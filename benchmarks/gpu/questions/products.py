"""Products: what the tensor cores reach, and whether ours or a library's are to serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from uniformer_kernels.bench.graphs import compare

from .. import operators, probes
from ..rows import OURS, row
from .rivals import BATCH, ROUNDS, Rows

_TENSOR_PEAK = "matmul bfloat16"


def tensor_cores() -> Iterator[dict[str, Any]]:
    make, flops = probes.multiplying()
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    yield row("mma.sync m16n8k16 from registers", compare({OURS: make}, graph=False), flops=flops)
    library = {OURS: lambda: lambda: a @ b}
    yield row(_TENSOR_PEAK, compare(library, graph=False), flops=2 * 8192**3)


def decide_tensor_cores(rows: Rows) -> str:
    rates = {found["what"]: found.get("flop_per_s") for found in rows}
    registers, library = (rates.get(name) for name in (rows[0]["what"], _TENSOR_PEAK))
    if not registers or not library:
        return "the probe did not run"
    share = registers / library
    verdict = "pays" if share > 0.5 else "does not pay"
    return f"{registers / 1e12:.0f} TFLOP/s, {share:.0%} of a large matmul: Toeplitz {verdict}"


def attention() -> Iterator[dict[str, Any]]:
    for batch in (1, 16):
        for N in (392, 801, 1568, 3136):
            for heads, d in ((8, 28), (8, 32), (5, 64)):
                for backward in (False, True):
                    makes = operators.attention(batch, N, heads, d, "bf16", backward=backward)
                    pass_ = "forward + gradients" if backward else "forward"
                    what = f"attention {N} × {heads} × {d}, batch {batch} bf16, {pass_}"
                    yield row(what, compare(makes, rounds=ROUNDS))
                    torch.cuda.empty_cache()


def decide_attention(rows: Rows) -> str:
    behind = [found["what"] for found in rows if found.get("ratio", 1) < 0.9]
    if not behind:
        return "Triton's kernel serves all of them"
    return f"the library is to serve what Triton's kernel is 10 % behind in: {'; '.join(behind)}"


def feed_forward() -> Iterator[dict[str, Any]]:
    for rows, C in operators.FEED_FORWARD[:2]:
        makes = operators.feed_forward(BATCH * rows, C, "bf16", backward=False)
        yield row(f"feed-forward C = {C} bf16, forward", compare(makes))
