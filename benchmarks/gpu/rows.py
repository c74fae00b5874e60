"""The form in which stages hand over what they measured."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from uniformer_kernels.bench.timing import Samples

OURS = "ours"


def row(
    what: str,
    results: dict[str, Samples | str],
    *,
    against: Collection[str] | None = None,
    bytes_: float | None = None,
    flops: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One comparison.

    Args:
        what: its name, by which the document finds it.
        results: seconds of every rival, or why it has none.
        against: the rivals that count for the ratio; all but ours by default.
        bytes_: the least that has to move between memory and chip, for the share of the ceiling.
        flops: arithmetic that has to be done.
        more: goes into the row.
    """
    medians = {k: v.median * 1e6 for k, v in results.items() if isinstance(v, Samples)}
    rivals = {k: v for k, v in medians.items() if k != OURS and (against is None or k in against)}
    ours = medians.get(OURS)
    found: dict[str, Any] = {
        "what": what,
        "median_us": medians,
        "spread": {k: v.spread for k, v in results.items() if isinstance(v, Samples)},
        "failed": {k: v for k, v in results.items() if isinstance(v, str)},
    } | more
    if ours is not None:
        if rivals:
            best = min(rivals, key=rivals.get)
            found |= {"best": best, "ratio": rivals[best] / ours}
        if bytes_:
            found["bytes_per_s"] = bytes_ / ours * 1e6
        if flops:
            found["flop_per_s"] = flops / ours * 1e6
    return found
