"""Matrix products with their neighbours against `F.linear` and its compilation."""

from __future__ import annotations

from .operators import parametrized, run


@parametrized("linear", "feed_forward")
def test_linear(benchmark, call) -> None:
    run(benchmark, call)
