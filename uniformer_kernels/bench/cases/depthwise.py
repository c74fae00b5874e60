"""Depthwise convolutions: position encodings, token affinities, and the local block around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import reference
from .. import plain
from ..case import MATRIX, VECTOR, Case, Results, Rival, Tensors, compiled
from .norms import mean

SHAPES = {  # kernel and grid
    "S stage 1, k5 8×56×56×64": ((5, 5, 5), (8, 56, 56, 64)),
    "S stage 1, k3 8×56×56×64": ((3, 3, 3), (8, 56, 56, 64)),
    "S stage 2, k5 8×28×28×128": ((5, 5, 5), (8, 28, 28, 128)),
    "S stage 3, k3 8×14×14×320": ((3, 3, 3), (8, 14, 14, 320)),
    "XXS stage 1, k5 8×40×40×56": ((5, 5, 5), (8, 40, 40, 56)),
    "S image, k5 56×56×64": ((1, 5, 5), (1, 56, 56, 64)),
    "V2-B, k3×1×1 8×14×14×768": ((3, 1, 1), (8, 14, 14, 768)),
}
_MOMENTS = ("S stage 1, k3 8×56×56×64", "S stage 3, k3 8×14×14×320")
_BLOCKS = {
    "S stage 1, 8×56×56×64": (8, 56, 56, 64),
    "S stage 2, 8×28×28×128": (8, 28, 28, 128),
    "XXS stage 1, 8×40×40×56": (8, 40, 40, 56),
}
_DENSE = 64  # channels up to which a full kernel is worth trying

CHANNELS_LAST, NCDHW = "channels-last", "NCDHW (official)"

_MAPS = ("x", "residual")


def channels_last(**tensors: Tensor) -> Tensors:
    """Maps as PyTorch's channels-last, `[B, C, T, H, W]` in the same memory."""
    return {n: t.movedim(-1, 1) if n in _MAPS else t for n, t in tensors.items()}


def channels_first(**tensors: Tensor) -> Tensors:
    """Maps as the official models keep them."""
    return {n: t.movedim(-1, 1).contiguous() if n in _MAPS else t for n, t in tensors.items()}


def _expanded(**tensors: Tensor) -> Tensors:
    return channels_last(**tensors) | {"weight": plain.dense(tensors["weight"])}


def _restored(results: Tensor | tuple[Tensor, ...]) -> Results:
    """Maps as the operators keep them."""
    if isinstance(results, Tensor):
        return results.movedim(1, -1)
    return tuple(t.movedim(1, -1) if t.ndim == 5 else t for t in results)


def both_layouts(function: Callable[..., Results]) -> dict[str, Rival]:
    """A function of `[B, C, T, H, W]` in both memory formats."""
    return {
        CHANNELS_LAST: Rival(function, channels_last, _restored),
        NCDHW: Rival(function, channels_first, _restored),
    }


def _convolution_with_moments(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor) -> Results:
    y = x + plain.depthwise_conv3d(x, weight, bias)
    z = y.float() - shift.view(-1, 1, 1, 1)
    return y, torch.stack([z.sum((0, 2, 3, 4)), z.square().sum((0, 2, 3, 4))])


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv3d(x, weight[:, :, None, None, None], bias)


def _first_half(
    x: Tensor, dw_weight: Tensor, dw_bias: Tensor, weight: Tensor, bias: Tensor
) -> Results:
    y = x + plain.depthwise_conv3d(x, dw_weight, dw_bias)
    return y, _pointwise(y, weight, bias)


def _second_half(
    x: Tensor,
    residual: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
) -> Tensor:
    y = plain.depthwise_conv3d(x, dw_weight, dw_bias)
    r = residual + _pointwise(y, pw_weight, pw_bias)
    hidden = F.gelu(_pointwise(r, fc1_weight, fc1_bias))
    return r + _pointwise(hidden, fc2_weight, fc2_bias)


# In float64, where `conv3d` would take ten seconds.


def _exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return plain.taps(x, weight, bias)


def _exact_with_moments(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor) -> Results:
    y = x + plain.taps(x, weight, bias)
    return y, reference.moments(y, shift=shift)


def _exact_first_half(
    x: Tensor, dw_weight: Tensor, dw_bias: Tensor, weight: Tensor, bias: Tensor
) -> Results:
    y = x + plain.taps(x, dw_weight, dw_bias)
    return y, F.linear(y, weight, bias)


def _exact_second_half(
    x: Tensor, residual: Tensor, dw_weight: Tensor, dw_bias: Tensor, **layers: Any
) -> Tensor:
    y = plain.taps(x, dw_weight, dw_bias)
    r = residual + F.linear(y, layers.pop("pw_weight"), layers.pop("pw_bias"))
    return reference.feed_forward(r, **layers, residual=r)


def cases(batch: int) -> Iterator[Case]:
    for name, (kernel, grid) in SHAPES.items():
        C, rows = grid[-1], batch * prod(grid[:-1])
        rivals = both_layouts(plain.depthwise_conv3d)
        if C <= _DENSE:
            rivals["dense, channels-last"] = Rival(plain.dense_conv3d, _expanded, _restored)
        yield Case(
            "depthwise_conv3d",
            name,
            {"x": (batch, *grid), "weight": (C, 1, *kernel), "bias": (C,)},
            reduction=rows,
            work={VECTOR: 2 * rows * C * prod(kernel)},
            rivals=rivals,
            exact=_exact,
        )
    for name in _MOMENTS:
        kernel, grid = SHAPES[name]
        C, rows = grid[-1], batch * prod(grid[:-1])
        yield Case(
            "depthwise_conv3d_with_moments",
            name,
            {"x": (batch, *grid), "weight": (C, 1, *kernel), "bias": (C,), "shift": (C,)},
            reduction=rows,
            options={"residual": True},
            work={VECTOR: 2 * rows * C * (prod(kernel) + 2)},
            rivals=both_layouts(_convolution_with_moments),
            special={"shift": partial(mean, C)},
            needs=("x", "weight", "bias"),
            exact=_exact_with_moments,
        )
    for name, grid in _BLOCKS.items():
        C, rows = grid[-1], batch * prod(grid[:-1])
        yield Case(
            "depthwise_linear",
            name,
            {
                "x": (batch, *grid),
                "dw_weight": (C, 1, 3, 3, 3),
                "dw_bias": (C,),
                "weight": (C, C),
                "bias": (C,),
            },
            reduction=27 * C,
            work={VECTOR: 2 * rows * C * 27, MATRIX: 2 * rows * C * C},
            rivals=both_layouts(_first_half),
            needs=(),
            exact=_exact_first_half,
        )
    for name, grid in _BLOCKS.items():
        C, rows = grid[-1], batch * prod(grid[:-1])
        yield Case(
            "depthwise_feed_forward",
            name,
            {
                "x": (batch, *grid),
                "residual": (batch, *grid),
                "dw_weight": (C, 1, 5, 5, 5),
                "dw_bias": (C,),
                "pw_weight": (C, C),
                "pw_bias": (C,),
                "fc1_weight": (4 * C, C),
                "fc1_bias": (4 * C,),
                "fc2_weight": (C, 4 * C),
                "fc2_bias": (C,),
            },
            reduction=125 * 4 * C,
            work={VECTOR: 2 * rows * C * 125, MATRIX: 2 * rows * C * 9 * C},
            rivals={
                **both_layouts(_second_half),
                "compiled": compiled(reference.depthwise_feed_forward),
            },
            needs=(),
            exact=_exact_second_half,
        )
