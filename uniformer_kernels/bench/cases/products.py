"""Matrix products with their neighbours: linear layers, feed-forward networks, patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ... import reference
from ..case import MATRIX, Case, Rival, Tensors, compiled
from . import libraries
from .depthwise import channels_first

LINEAR = {  # rows of a clip, C_in, C_out, activation
    "S stage 1 fc1, 25088 × 64 → 256": (25088, 64, 256, "gelu"),
    "S stage 2 fc2, 6272 × 512 → 128": (6272, 512, 128, None),
    "S stage 3 qkv, 1568 × 320 → 960": (1568, 320, 960, None),
    "S stage 3 fc1, 1568 × 320 → 1280": (1568, 320, 1280, "gelu"),
    "S stage 4 fc2, 392 × 2048 → 512": (392, 2048, 512, None),
}
_FEED_FORWARD = {  # rows of a clip, channels, hidden channels
    "S stage 1, 25088 × 64": (25088, 64, 256),
    "S stage 3, 1568 × 320": (1568, 320, 1280),
    "XXS stage 3, 402 × 224": (402, 224, 672),
}
_PATCHES = {  # grid, C_out, kernel, stride, padding
    "S stem, 16×224×224×3 → 64": ((16, 224, 224, 3), 64, (3, 4, 4), (2, 4, 4), (1, 0, 0)),
    "S stage 3, 8×28×28×128 → 320": ((8, 28, 28, 128), 320, (1, 2, 2), (1, 2, 2), (0, 0, 0)),
}


def _convolution(options: dict[str, Any], rival_layout: Callable[..., Tensors]) -> Rival:
    """The official stem: a convolution, and its map as tokens for the norm."""

    def compute(
        x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor
    ) -> Tensor:
        y = F.conv3d(x, weight, bias, **options)
        tokens = y.flatten(2).transpose(1, 2)
        tokens = F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias)
        return tokens.view(len(y), *y.shape[2:], -1)

    return Rival(compute, rival_layout)


def cases(batch: int) -> Iterator[Case]:
    options: dict[str, Any]
    for name, (rows, C_in, C_out, activation) in LINEAR.items():
        options = {"activation": activation}
        yield Case(
            "linear",
            name,
            {"x": (batch, rows, C_in), "weight": (C_out, C_in), "bias": (C_out,)},
            reduction=max(batch * rows, C_in),
            options=options,
            work={MATRIX: 2 * batch * rows * C_in * C_out},
            rivals={"compiled": compiled(reference.linear, **options)},
        )
    for name, (rows, C, hidden) in _FEED_FORWARD.items():
        yield Case(
            "feed_forward",
            name,
            {
                "x": (batch, rows, C),
                "fc1_weight": (hidden, C),
                "fc1_bias": (hidden,),
                "fc2_weight": (C, hidden),
                "fc2_bias": (C,),
                "residual": (batch, rows, C),
            },
            reduction=max(batch * rows, hidden),
            work={MATRIX: 4 * batch * rows * C * hidden},
            rivals={
                "compiled": compiled(reference.feed_forward),
                **libraries.feed_forward(C, hidden),
            },
        )
    for name, (grid, C_out, kernel, stride, padding) in _PATCHES.items():
        C_in = grid[-1]
        options = {"stride": stride, "padding": padding}
        positions = prod(
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip(grid[:-1], kernel, stride, padding, strict=True)
        )
        yield Case(
            "patch_embed",
            name,
            {
                "x": (batch, *grid),
                "weight": (C_out, C_in, *kernel),
                "bias": (C_out,),
                "norm_weight": (C_out,),
                "norm_bias": (C_out,),
            },
            reduction=max(batch * positions, C_in * prod(kernel)),
            options=options,
            work={MATRIX: 2 * batch * positions * C_in * prod(kernel) * C_out},
            rivals={
                "NCDHW (official)": _convolution(options, channels_first),
                "compiled": compiled(reference.patch_embed, **options),
                **libraries.patch_embed(grid, C_out, kernel, options),
            },
        )
