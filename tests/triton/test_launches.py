"""How many kernels a pass starts: the committed figure, and a plan that is what really runs."""

from __future__ import annotations

import pytest

from benchmarks.workloads import WORKLOADS, Workload

# Our kernels and PyTorch's operators; the official code's forward of UniFormer-S has 308 of them.
COUNTS = {}


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_launch_counts(workload: Workload) -> None:
    plan = workload.plan()
    assert plan.count == COUNTS[str(workload)], plan.operators
