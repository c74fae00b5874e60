"""Matrix products, with GELU where the model has one, against `F.linear`."""

from __future__ import annotations

import pytest

from . import cases


@pytest.mark.parametrize("rival", [cases.OURS, "PyTorch"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("case", cases.LINEAR)
def test_linear(benchmark, case: str, backward: bool, rival: str) -> None:
    benchmark.group = f"linear {case}, {'forward + gradients' if backward else 'forward'}"
    benchmark(cases.linear(case, backward=backward)[rival])
