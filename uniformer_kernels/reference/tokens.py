"""Choosing tokens by importance and putting them back, with whole sorts and gathers."""

import torch
from torch import Tensor


def token_shrink(
    x: Tensor, importance: Tensor, keep: int, *, prefix: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``[prefix | kept | representative]`` of ``[B, N, C]``, and where the kept tokens stood."""
    order = importance.sort(dim=1, descending=True, stable=True).indices
    index, rest = order[:, :keep].sort(1).values, order[:, keep:].sort(1).values
    weight = importance.gather(1, rest)
    weight = torch.where(weight.sum(1, keepdim=True) == 0, 1.0, weight)
    weight = weight / weight.sum(1, keepdim=True)
    dropped = _rows(x, rest).to(weight.dtype)
    representative = (weight.unsqueeze(2) * dropped).sum(1, keepdim=True).to(x.dtype)
    parts = [] if prefix is None else [prefix]
    return torch.cat([*parts, _rows(x, index), representative], 1), index


def token_recover(x: Tensor, index: Tensor, kept: Tensor, delta: Tensor) -> Tensor:
    """``x + delta``, but ``kept`` in the rows of ``index``."""
    return (x + delta).scatter(1, index.unsqueeze(2).expand_as(kept), kept)


def token_recover_with_importance(
    x: Tensor,
    index: Tensor,
    kept: Tensor,
    delta: Tensor,
    importance: Tensor,
    score: Tensor,
    *,
    trade_off: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """``token_recover``, and the importance with the kept tokens' part of the score mixed in."""
    score = score[:, score.shape[1] - index.shape[1] - 1 :]
    seen = importance.gather(1, index).lerp(score[:, :-1], trade_off)
    if index.shape[1] + 1 == importance.shape[1]:  # the representative is a token itself
        importance = importance.lerp(score[:, -1:], trade_off)
    return token_recover(x, index, kept, delta), importance.scatter(1, index, seen)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))
