"""How many kernels a pass starts: the committed figure, and a plan that is what really runs."""

from __future__ import annotations

import pytest

from benchmarks.workloads import WORKLOADS, Workload

# Our kernels and PyTorch's operators; the official code's forward of UniFormer-S has 308 of them.
COUNTS = {
    "uniformer_video_small 1x3x16x224x224 forward bfloat16": 136,
    "uniformer_video_small 8x3x16x224x224 training bfloat16": 751,
    "uniformer_video_xxs 1x3x16x160x160 forward bfloat16": 210,
    "uniformer_video_xxs 8x3x16x160x160 training bfloat16": 904,
    "uniformer_dense_small 1x3x800x1280 forward bfloat16": 141,
    "uniformerv2_b16 8x3x8x224x224 forward bfloat16": 364,
    "uniformerv2_b16 8x3x8x224x224 training bfloat16": 1641,
}


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_launch_counts(workload: Workload) -> None:
    plan = workload.plan()
    assert plan.count == COUNTS[str(workload)], plan.operators
