"""A batch's statistics and their folding against PyTorch's."""

from __future__ import annotations

from .operators import parametrized, run


@parametrized("moments", "fold_batch_norm")
def test_batch_norm(benchmark, call) -> None:
    run(benchmark, call)
