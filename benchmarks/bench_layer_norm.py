"""LayerNorm against PyTorch's."""

from __future__ import annotations

from .operators import parametrized, run


@parametrized("layer_norm")
def test_layer_norm(benchmark, call) -> None:
    run(benchmark, call)
