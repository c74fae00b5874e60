"""One query's attention against SDPA of projected keys and values."""

from __future__ import annotations

from .operators import parametrized, run


@parametrized("query_attention")
def test_query_attention(benchmark, call) -> None:
    run(benchmark, call)
