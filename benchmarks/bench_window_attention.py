"""Attention in windows against SDPA of copied windows."""

from __future__ import annotations

from .operators import parametrized, run


@parametrized("window_attention")
def test_window_attention(benchmark, call) -> None:
    run(benchmark, call)
