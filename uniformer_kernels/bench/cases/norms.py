"""LayerNorm, a batch's statistics, and their folding into the layer behind them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ... import reference
from ..case import VECTOR, Case, Results, Rival, compiled

_TOKENS = {  # tokens of a clip, channels
    "S stage 3, 1568 × 320": (1568, 320),
    "V2-B, 1576 × 768": (1576, 768),
}
_MAPS = {"S stage 1, 25088 × 64": (25088, 64), "S stage 2, 6272 × 128": (6272, 128)}
_LAYERS = {"S stage 1 fc1, 64 → 256": (64, 256), "S stage 2 fc1, 128 → 512": (128, 512)}


def _var_mean(x: Tensor, shift: Tensor) -> Tensor:
    """The moments by PyTorch's own statistics."""
    x = x.flatten(0, -2).float()
    var, mean = torch.var_mean(x, 0, correction=0)
    mean = mean - shift
    return torch.stack([mean, var + mean.square()]) * len(x)


def _folded(
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    statistics: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
) -> Results:
    """As one folds a norm in front of a layer: of its running statistics."""
    scale = norm_weight * (statistics + 1e-5).rsqrt()
    shift = norm_bias - mean * scale
    return (weight * scale).to(weight), bias + (weight * shift).sum(1).to(weight)


# Statistics are float32, whatever the maps are.


def _variance(channels: int, device: torch.device) -> Tensor:
    return torch.rand(channels, device=device) + 0.5


def mean(channels: int, device: torch.device) -> Tensor:
    return torch.randn(channels, device=device)


def cases(batch: int) -> Iterator[Case]:
    for name, (N, C) in _TOKENS.items():
        yield Case(
            "layer_norm",
            name,
            {"x": (batch, N, C), "weight": (C,), "bias": (C,)},
            reduction=max(batch * N, C),
            work={VECTOR: 8 * batch * N * C},  # sum, centre, square and sum, two products, sums
            rivals={"compiled": compiled(reference.layer_norm)},
        )
    for name, (rows, C) in _MAPS.items():
        yield Case(
            "moments",
            name,
            {"x": (batch, rows, C), "shift": (C,)},
            reduction=batch * rows,
            work={VECTOR: 4 * batch * rows * C},  # difference, sum, square and sum
            special={"shift": partial(mean, C)},
            needs=("x",),
            rivals={"var_mean": Rival(_var_mean), "compiled": compiled(reference.moments)},
        )
    for name, (C_in, C_out) in _LAYERS.items():
        yield Case(
            "fold_batch_norm",
            name,
            {
                "weight": (C_out, C_in),
                "bias": (C_out,),
                "mean": (C_in,),
                "statistics": (C_in,),
                "norm_weight": (C_in,),
                "norm_bias": (C_in,),
            },
            reduction=max(C_in, C_out),
            work={VECTOR: 3 * C_in * C_out},
            special={"statistics": partial(_variance, C_in)},
            needs=("weight", "bias", "norm_weight", "norm_bias"),
            rivals={
                "written out": Rival(_folded),
                "compiled": compiled(reference.fold_batch_norm),
            },
        )
