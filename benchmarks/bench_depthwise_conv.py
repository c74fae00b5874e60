"""Depthwise convolution against PyTorch's, channels-last and channels-first."""

from __future__ import annotations

import pytest

from . import cases


@pytest.mark.parametrize("rival", [cases.OURS, cases.CHANNELS_LAST, cases.CHANNELS_FIRST])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("case", cases.DEPTHWISE)
def test_depthwise_conv(benchmark, case: str, backward: bool, rival: str) -> None:
    benchmark.group = f"depthwise {case}, {'forward + gradients' if backward else 'forward'}"
    benchmark(cases.depthwise(case, backward=backward)[rival])
