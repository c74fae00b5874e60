"""One ordinary call of every operator, for the tests that ask the same of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import uniformer_kernels as uk
from torch import Tensor
from uniformer_kernels import reference

from tests.contract import Function, draw


@dataclass(frozen=True)
class Call:
    """An operator with the shapes of its tensors and its other arguments."""

    operator: str
    shapes: dict[str, tuple[int, ...]]
    reduction: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def kernel(self) -> Function:
        return partial(getattr(uk, self.operator), **self.options)

    @property
    def reference(self) -> Function:
        return partial(getattr(reference, self.operator), **self.options)

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {name: draw(*shape, dtype=dtype) for name, shape in self.shapes.items()}


CALLS = [
    Call(
        "depthwise_conv3d",
        {"x": (2, 3, 5, 6, 17), "weight": (17, 1, 3, 5, 3), "bias": (17,)},
        reduction=180,
        options={"residual": True},
    ),
    Call(
        "linear",
        {"x": (2, 7, 12), "weight": (20, 12), "bias": (20,), "residual": (2, 7, 20)},
        reduction=20,
        options={"activation": "gelu"},
    ),
    Call(
        "feed_forward",
        {
            "x": (2, 7, 12),
            "fc1_weight": (24, 12),
            "fc1_bias": (24,),
            "fc2_weight": (12, 24),
            "fc2_bias": (12,),
            "residual": (2, 7, 12),
        },
        reduction=24,
    ),
    Call("joint_attention", {"qkv": (2, 9, 48)}, reduction=9, options={"num_heads": 2}),
    Call(
        "patch_embed",
        {
            "x": (2, 5, 8, 9, 3),
            "weight": (10, 3, 3, 4, 4),
            "bias": (10,),
            "norm_weight": (10,),
            "norm_bias": (10,),
        },
        reduction=144,
        options={"stride": (2, 4, 4), "padding": (1, 0, 0)},
    ),
]
