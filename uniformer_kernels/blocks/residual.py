"""Residual branches: ``x + DropPath(branch)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .parameters import Affine


def layer_scaled(layer: Affine, gamma: Tensor | None) -> Affine:
    """The linear layer that computes ``gamma * layer(x)``; ``gamma`` may be any ``[C]`` view."""
    layer = layer.as_linear()
    return layer if gamma is None else layer.scale_output(gamma.flatten())


def add_branch(x: Tensor, drop_path: float, operator: Callable[..., Tensor], *args: Any) -> Tensor:
    """``x + DropPath(operator(*args))``.

    With probability ``drop_path`` a sample (an index of the first axis) loses the branch; where it
    stays it is divided by the probability that it does. A rate of 0 leaves the sum to the
    operator's epilogue.
    """
    if not drop_path:
        return operator(*args, residual=x)
    keep = 1.0 - drop_path
    mask = x.new_empty([x.shape[0]] + [1] * (x.dim() - 1)).bernoulli_(keep).div_(keep)
    return torch.addcmul(x, operator(*args), mask)
