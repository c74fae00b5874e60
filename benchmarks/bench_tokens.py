"""Choosing tokens and putting them back against sorting all of them."""

from __future__ import annotations

from .operators import parametrized, run


@parametrized("token_shrink", "token_recover", "token_recover_with_importance")
def test_tokens(benchmark, call) -> None:
    run(benchmark, call)
