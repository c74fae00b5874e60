"""The other families' models, measured as those of the stage `models` are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..models import base, dense_small, v2_base, xs
from .models import Family, measure

FAMILIES = [
    Family("UniFormer-B 16×224", base, (1, 16)),
    Family("UniFormer-XS 16×160", xs, (1, 16)),
    Family("UniFormerV2-B/16 16×224 for Something-Something", v2_base, (1, 8)),
    Family("dense S hybrid-14 at 800×1280", dense_small, (1, 4), trains=False),
]


def run() -> Iterator[dict[str, Any]]:
    for family in FAMILIES:
        yield from measure(family)
