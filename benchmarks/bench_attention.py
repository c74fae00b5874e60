"""Joint attention against PyTorch's fused one and the one written out."""

from __future__ import annotations

import pytest

from . import cases


@pytest.mark.parametrize("rival", [cases.OURS, "SDPA", "materialised"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("case", cases.ATTENTION)
def test_attention(benchmark, case: str, backward: bool, rival: str) -> None:
    benchmark.group = f"attention {case}, {'forward + gradient' if backward else 'forward'}"
    benchmark(cases.attention(case, backward=backward)[rival])
