"""Choosing tokens and putting them back, as UniFormer-XXS's third stage at 16 × 160."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import uniformer_kernels as uk

from ... import reference
from .. import plain
from ..case import VECTOR, Case, Results, Rival, Tensors, compiled

SHAPES = {  # tokens, channels, how many are kept
    "XXS stage 3, 800 × 224, 400 kept": (800, 224, 400),
    "XS stage 3, 2304 × 256, 1152 kept": (2304, 256, 1152),
}


def _importance(batch: int, N: int, device: torch.device) -> Tensor:
    """In float32, as the scores come: in 16 bits many would be equal."""
    return torch.rand(batch, N, device=device)


def _index(batch: int, N: int, keep: int, device: torch.device) -> Tensor:
    order = torch.rand(batch, N, device=device).argsort(1)
    return order[:, :keep].sort(1).values


def _shrink(x: Tensor, importance: Tensor, prefix: Tensor, *, keep: int) -> Results:
    return plain.token_shrink(x, importance, keep, prefix)


def _shrink_restored(results: tuple[Tensor, ...], *, keep: int) -> Results:
    """The official order, most important first, as ours: by position."""
    z, _, _, position = results
    index, order = position[:, :keep].long().sort(1)
    kept = z[:, 1 : 1 + keep].gather(1, order.unsqueeze(2).expand(-1, -1, z.shape[2]))
    return torch.cat([z[:, :1], kept, z[:, 1 + keep :]], 1), index


def _recover_layout(x: Tensor, index: Tensor, kept: Tensor, delta: Tensor) -> Tensors:
    """What the official code has kept since it shrank: the others, and where all stood."""
    B, N, C = x.shape
    taken = torch.zeros(B, N, dtype=torch.bool, device=x.device).scatter(1, index, True)
    rest = (~taken).nonzero()[:, 1].view(B, -1)
    others = x.gather(1, rest.unsqueeze(2).expand(-1, -1, C))
    position = torch.cat([index, rest], 1).to(x.dtype)
    importance = torch.zeros_like(position)
    layout = {"kept": kept, "others": others, "delta": delta}
    return layout | {"importance": importance, "position": position}


def _recover(
    kept: Tensor, others: Tensor, delta: Tensor, importance: Tensor, position: Tensor
) -> Tensor:
    return plain.token_recover(kept, others + delta, importance, position)[0]


def _average_layout(importance: Tensor, score: Tensor, **tokens: Tensor) -> Tensors:
    """The importance in the official order, too."""
    layout = _recover_layout(**tokens)
    position = layout["position"].long()
    return layout | {"importance": importance.gather(1, position), "score": score}


def _average(
    kept: Tensor,
    others: Tensor,
    delta: Tensor,
    importance: Tensor,
    position: Tensor,
    score: Tensor,
) -> Results:
    keep = kept.shape[1]
    seen = 0.5 * importance[:, :keep] + 0.5 * score[:, 1:-1]
    importance = torch.cat([seen, importance[:, keep:]], 1)
    return plain.token_recover(kept, others + delta, importance, position)


def _apart(importance: Tensor, score: Tensor, index: Tensor, **tokens: Tensor) -> Results:
    seen = importance.gather(1, index).lerp(score[:, 1:-1], 0.5)
    return uk.token_recover(index=index, **tokens), importance.scatter(1, index, seen)


def _tokens(batch: int, N: int, C: int, keep: int) -> dict[str, tuple[int, ...]]:
    return {
        "x": (batch, N, C),
        "index": (batch, keep),
        "kept": (batch, keep, C),
        "delta": (batch, 1, C),
    }


def cases(batch: int) -> Iterator[Case]:
    for name, (N, C, keep) in SHAPES.items():
        options: dict[str, Any] = {"keep": keep}
        yield Case(
            "token_shrink",
            name,
            {"x": (batch, N, C), "importance": (batch, N), "prefix": (batch, 1, C)},
            reduction=N,
            options=options,
            work={VECTOR: 2 * batch * (N - keep) * C},
            special={"importance": partial(_importance, batch, N)},
            rivals={
                "sorted (official)": Rival(
                    partial(_shrink, **options), restore=partial(_shrink_restored, **options)
                ),
                "compiled": compiled(reference.token_shrink, **options),
            },
        )
    for name, (N, C, keep) in SHAPES.items():
        yield Case(
            "token_recover",
            name,
            _tokens(batch, N, C, keep),
            reduction=N,
            work={VECTOR: batch * (N - keep) * C},
            special={"index": partial(_index, batch, N, keep)},
            rivals={
                "sorted (official)": Rival(_recover, _recover_layout),
                "compiled": compiled(reference.token_recover),
            },
        )
    for name, (N, C, keep) in SHAPES.items():
        yield Case(
            "token_recover_with_importance",
            name,
            _tokens(batch, N, C, keep) | {"importance": (batch, N), "score": (batch, keep + 2)},
            reduction=N,
            work={VECTOR: batch * ((N - keep) * C + 3 * keep)},
            special={
                "index": partial(_index, batch, N, keep),
                "importance": partial(_importance, batch, N),
                "score": partial(_importance, batch, keep + 2),
            },
            needs=("x", "kept", "delta", "importance", "score"),
            rivals={
                "sorted (official)": Rival(_average, _average_layout),
                "token_recover, lerp, scatter": Rival(_apart),
                "compiled": compiled(reference.token_recover_with_importance),
            },
        )
