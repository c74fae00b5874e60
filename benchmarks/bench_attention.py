"""Joint attention against PyTorch's fused one and the one written out."""

from __future__ import annotations

from .operators import parametrized, run


@parametrized("joint_attention", "joint_attention_with_score")
def test_attention(benchmark, call) -> None:
    run(benchmark, call)
