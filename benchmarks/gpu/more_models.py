"""The other families' models, measured as those of the stage `models` are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ..models import V2, WINDOWS, base, dense_small, v2_base, xs
from ..workloads import Workload
from .compile import ahead, planned
from .models import Family, measure

FAMILIES = [
    Family("UniFormer-B 16×224", base, (1, 16)),
    Family("UniFormer-XS 16×160", xs, (1, 16)),
    Family("UniFormerV2-B/16 16×224 for Something-Something", v2_base, (1, 8)),
    Family("dense S hybrid-14 at 800×1280", dense_small, (1, 4)),
]
WORKLOADS = [
    Workload(model, (batch, 3, *size), training, keywords=keywords)
    for model, size, batches, keywords in (
        ("uniformer_video_base", (16, 224, 224), (1, 16), {}),
        ("uniformer_video_xs", (16, 160, 160), (1, 16), {}),
        ("uniformerv2_b16", (16, 224, 224), (1, 8), V2),
        ("uniformer_dense_small", (800, 1280), (1, 4), WINDOWS),
    )
    for batch in batches
    for training in (False, True)
    if not training or batch > 1
]


def run() -> Iterator[dict[str, Any]]:
    yield ahead(partial(planned, WORKLOADS), FAMILIES)
    for family in FAMILIES:
        yield from measure(family)
