"""Depthwise convolutions against PyTorch's in both memory formats, and dense ones."""

from __future__ import annotations

from .operators import parametrized, run


@parametrized("depthwise_conv3d", "depthwise_conv3d_with_moments")
def test_depthwise_conv(benchmark, call) -> None:
    run(benchmark, call)
