"""Residual branches: ``x + DropPath(branch)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def add_branch(
    x: Tensor,
    drop_path: float,
    operator: Callable[..., Tensor],
    *args: Any,
    axis: int | None = 0,
    **options: Any,
) -> Tensor:
    """``x + DropPath(operator(*args, **options))``.

    A rate of 0 leaves the sum to the operator's epilogue.
    """
    if not drop_path:
        return operator(*args, residual=x, **options)
    return add(x, operator(*args, **options), drop_path, axis)


def add(x: Tensor, branch: Tensor, drop_path: float, axis: int | None = 0) -> Tensor:
    """``x + DropPath(branch)``.

    With probability ``drop_path`` an index of ``axis`` (a sample, by default) loses the branch, or
    all of ``x`` where that is ``None``; where it stays it is divided by the probability that it
    does.
    """
    if not drop_path:
        return x + branch
    keep = 1.0 - drop_path
    draws = [size if index == axis else 1 for index, size in enumerate(x.shape)]
    mask = x.new_empty(draws).bernoulli_(keep).div_(keep)
    return torch.addcmul(x, branch, mask)
