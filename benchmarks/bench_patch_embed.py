"""Stems against convolutions with a norm behind them."""

from __future__ import annotations

from .operators import parametrized, run


@parametrized("patch_embed")
def test_patch_embed(benchmark, call) -> None:
    run(benchmark, call)
