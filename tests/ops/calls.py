"""One ordinary call of every operator, for the tests that ask the same of all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import uniformer_kernels as uk
from tests.contract import Function, draw
from uniformer_kernels import reference


@dataclass(frozen=True)
class Call:
    """An operator with the shapes of its tensors and its other arguments."""

    operator: str
    shapes: dict[str, tuple[int, ...]]
    reduction: int
    options: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    needs: Collection[str] | None = None  # inputs that have a gradient: all, or () at inference

    @property
    def kernel(self) -> Function:
        return _joined(partial(getattr(uk, self.operator), **self.options))

    @property
    def reference(self) -> Function:
        return _joined(partial(getattr(reference, self.operator), **self.options))

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {
            name: draw(*shape, dtype=dtype) * self.scales.get(name, 1)
            for name, shape in self.shapes.items()
        }


def _joined(function: Callable[..., Tensor | tuple[Tensor, ...]]) -> Function:
    """Several results as one, channel behind channel."""

    def run(**tensors: Tensor) -> Tensor:
        result = function(**tensors)
        return result if isinstance(result, Tensor) else torch.cat(result, -1)

    return run


CALLS = [
    Call(
        "depthwise_conv3d",
        {"x": (2, 3, 5, 6, 17), "weight": (17, 1, 3, 5, 3), "bias": (17,)},
        reduction=180,
        options={"residual": True},
    ),
    Call("layer_norm", {"x": (3, 7, 12), "weight": (12,), "bias": (12,)}, reduction=21),
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
    Call(
        "linear",
        {
            "x": (2, 7, 12),
            "weight": (20, 12),
            "bias": (20,),
            "norm_weight": (12,),
            "norm_bias": (12,),
            "residual": (2, 7, 20),
        },
        reduction=20 * 12,  # sums one behind another
        options={"eps": 1e-2},
    ),
    Call(
        "feed_forward",
        {
            "x": (2, 7, 12),
            "fc1_weight": (24, 12),
            "fc1_bias": (24,),
            "fc2_weight": (12, 24),
            "fc2_bias": (12,),
            "norm_weight": (12,),
            "norm_bias": (12,),
            "residual": (2, 7, 12),
        },
        reduction=24 * 12,  # sums one behind another
    ),
    Call(
        "window_attention",
        {"qkv": (2, 1, 4, 5, 48), "bias": (48,)},
        reduction=80,
        options={"num_heads": 2, "window_size": 3},
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
    Call(
        "query_attention",
        {
            "query": (2, 1, 12),
            "memory": (2, 9, 12),
            "norm_weight": (12,),
            "norm_bias": (12,),
            "in_proj_weight": (36, 12),
            "in_proj_bias": (36,),
        },
        reduction=36 * 12,  # products one behind another
        options={"num_heads": 3},
        scales={"in_proj_weight": 0.25},  # else one token takes all of a head's attention
    ),
    Call(
        "depthwise_linear",
        {
            "x": (2, 2, 5, 6, 17),
            "dw_weight": (17, 1, 3, 3, 3),
            "dw_bias": (17,),
            "weight": (12, 17),
            "bias": (12,),
        },
        reduction=27 * 17,  # products one behind another
        needs=(),
    ),
    Call(
        "depthwise_feed_forward",
        {
            "x": (2, 2, 5, 6, 12),
            "residual": (2, 2, 5, 6, 12),
            "dw_weight": (12, 1, 1, 3, 5),
            "dw_bias": (12,),
            "pw_weight": (12, 12),
            "pw_bias": (12,),
            "fc1_weight": (24, 12),
            "fc1_bias": (24,),
            "fc2_weight": (12, 24),
            "fc2_bias": (12,),
        },
        reduction=15 * 24,  # products one behind another
        scales={"dw_weight": 0.25, "pw_weight": 0.25, "fc1_weight": 0.25, "fc2_weight": 0.25},
        needs=(),
    ),
]
DIFFERENTIABLE = [call for call in CALLS if call.needs is None]
