"""Batch statistics over the batches of several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


def synchronised_group(module: nn.SyncBatchNorm) -> Any:
    """The processes whose batches are one in the module's next call; ``None`` for its own alone."""
    if not (module.training and distributed.is_available() and distributed.is_initialized()):
        return None
    group = module.process_group or distributed.group.WORLD
    return group if group.size() > 1 else None


def synchronise(
    moments: Tensor, shift: Tensor, count: int, group: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of all processes, about one shift.

    Args:
        moments: ``[2, C]``, sums of ``x - shift`` and of its square.
        shift: ``[C]``, this process's.
        count: values per channel, here.
        group: the processes.

    Returns:
        The moments ``[2, C]`` about the shift ``[C]`` that follows, and how many values there are,
        a tensor without axes. The gradient of every process's loss reaches all of them.
    """
    return _Synchronise.apply(moments, shift, count, group)


class _Synchronise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, moments: Tensor, shift: Tensor, count: int, group: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        C = len(shift)
        own = torch.cat([moments.flatten(), shift, shift.new_full((1,), count)])
        everybody = own.new_empty(group.size(), len(own))
        distributed.all_gather(list(everybody), own, group=group)
        sums, squares, shifts, counts = everybody.split([C, C, C, 1], 1)
        total = counts.sum()
        common = (counts * shifts).sum(0) / total
        away = shifts - common
        squares = squares + 2 * away * sums + counts * away.square()
        sums = sums + counts * away
        ctx.group = group
        ctx.save_for_backward(shift - common)
        ctx.mark_non_differentiable(common, total)
        return torch.stack([sums.sum(0), squares.sum(0)]), common, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dmoments: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (away,) = ctx.saved_tensors
        dmoments = dmoments.contiguous()
        distributed.all_reduce(dmoments, group=ctx.group)
        dsums, dsquares = dmoments
        return torch.stack([dsums + 2 * away * dsquares, dsquares]), None, None, None
