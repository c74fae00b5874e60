"""Both halves of a local block at inference against their layers one by one."""

from __future__ import annotations

from .operators import parametrized, run


@parametrized("depthwise_linear", "depthwise_feed_forward")
def test_local_block(benchmark, call) -> None:
    run(benchmark, call)
