"""The calls the tuner measures: the operators at the models' shapes, planned on meta tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..triton import tuning
from ..triton.launch import Launch
from ..triton.library import NAMESPACE
from ..triton.plan import planning

Call = tuple[str, tuple[Any, ...]]
"""An operator of the Triton library by name, and its arguments with tensors on the meta device."""


def models_calls(batch: int, dtypes: Sequence[torch.dtype]) -> list[Call]:
    """The models' calls in every dtype."""
    return [call for dtype in dtypes for call in calls_of(partial(operators, batch, dtype))]


def candidates(batch: int, dtypes: Sequence[torch.dtype], architecture: str) -> Iterator[Launch]:
    """Every launch that is tried in the models' calls, planned."""
    for name, args in models_calls(batch, dtypes):
        operator = getattr(getattr(torch.ops, NAMESPACE), name)
        with planning(architecture), tuning.asking() as asked:
            operator(*args)
        for kernel in sorted({kernel for kernel, _ in asked}):
            tunable = tuning.KERNELS[kernel]
            for options in ({}, *tunable.space):
                with planning(architecture) as plan, tunable.trying(**options):
                    operator(*args)
                yield from plan.launches


def calls_of(run: Callable[[], object]) -> list[Call]:
    """Our operators' calls in ``run``, which works on meta tensors; each kind once."""
    with planning() as plan:
        run()
    return list({_kind(call): call for call in plan.calls}.values())


def _kind(call: Call) -> tuple[Any, ...]:
    name, args = call

    def key(a: Any) -> Any:
        if isinstance(a, Tensor):
            return a.dtype, a.shape, a.stride()
        return tuple(a) if isinstance(a, list) else a

    return name, *map(key, args)


# The calls: every operator at the models' shapes, forward and backward.

_LOCAL = [(8, 56, 56, 64), (8, 28, 28, 128), (8, 40, 40, 56), (8, 20, 20, 112)]
_GLOBAL = [  # grid and heads
    ((8, 14, 14, 320), 5),
    ((8, 7, 7, 512), 8),
    ((16, 14, 14, 320), 5),
    ((8, 10, 10, 224), 8),
    ((8, 5, 5, 448), 16),
]


def operators(batch: int, dtype: torch.dtype) -> None:
    """UniFormer's operators on meta tensors."""

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)

    def dense(C_in: int, C_out: int) -> tuple[Tensor, Tensor]:
        return new(C_out, C_in), new(C_out)

    results = [
        ops.patch_embed(
            new(batch, 16, 224, 224, 3),
            new(64, 3, 3, 4, 4),
            *(new(64) for _ in range(3)),
            stride=(2, 4, 4),
            padding=(1, 0, 0),
        )
    ]
    for *grid, C in _LOCAL:
        x = new(batch, *grid, C)
        results.append(ops.depthwise_conv3d(x, new(C, 1, 3, 3, 3), new(C), residual=True))
        results.append(ops.depthwise_conv3d(x, new(C, 1, 5, 5, 5), new(C)))
        results.append(ops.linear(x, *dense(C, C), residual=x))
        results.append(ops.feed_forward(x, *dense(C, 4 * C), *dense(4 * C, C), residual=x))
    for (*grid, C), heads in _GLOBAL:
        x = new(batch, *grid, C)
        tokens = x.flatten(1, 3)
        results.append(ops.depthwise_conv3d(x, new(C, 1, 3, 3, 3), new(C), residual=True))
        results.append(ops.layer_norm(tokens, new(C), new(C)))
        results.append(ops.joint_attention(new(batch, tokens.shape[1], 3 * C), heads))
        results.append(ops.linear(tokens, *dense(C, C), residual=tokens))
        results.append(
            ops.feed_forward(tokens, *dense(C, 4 * C), *dense(4 * C, C), residual=tokens)
        )
    results += _others(batch, new, dense)
    local_blocks(batch, dtype)
    torch.autograd.backward(results, [torch.empty_like(result) for result in results])


def local_blocks(batch: int, dtype: torch.dtype) -> None:
    """Local blocks at inference on meta tensors, as a prepared model keeps its weights."""

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def taps(*kernel: int) -> Tensor:
        return new(1, *kernel, shape[-1]).movedim(-1, 0)

    for shape in _LOCAL:
        C = shape[-1]
        y, z = ops.depthwise_linear(new(batch, *shape), taps(3, 3, 3), new(C), new(C, C), new(C))
        layers = new(C, C), new(C), new(4 * C, C), new(4 * C), new(C, 4 * C), new(C)
        ops.depthwise_feed_forward(z, y, taps(5, 5, 5), new(C), *layers)


def _others(
    batch: int,
    new: Callable[..., Tensor],
    dense: Callable[[int, int], tuple[Tensor, Tensor]],
) -> list[Tensor]:
    """Operators of one family each: windows, hourglass blocks, UniFormerV2, batch statistics."""
    qkv = new(1, 1, 50, 80, 3 * 320)
    results = [ops.window_attention(qkv, new(3 * 320), 5, 14)]

    tokens = new(batch, 800, 224)
    importance = tokens.detach().new_empty(batch, 800, dtype=torch.float32)
    kept, index = ops.token_shrink(tokens, importance, 400, prefix=new(batch, 1, 224))
    recovered = tokens, index, kept[:, 1:-1], kept[:, -1:]
    results.append(ops.token_recover(*recovered))
    y, score = ops.joint_attention_with_score(new(batch, 402, 3 * 224), 8)
    results += y, *ops.token_recover_with_importance(*recovered, importance, score)

    layers = new(768), new(768), *dense(768, 3 * 768)
    results.append(ops.query_attention(new(batch, 1, 768), new(batch, 1576, 768), *layers, 12))

    x, mean = new(batch, 8, 56, 56, 64), torch.empty(64, device="meta")
    weight, bias = dense(64, 64)
    y, moments = ops.depthwise_conv3d_with_moments(x, new(64, 1, 3, 3, 3), new(64), shift=mean)
    for m in (moments, ops.moments(y, shift=mean)):
        count = y[..., 0].numel()
        results += ops.fold_batch_norm(weight, bias, mean, m, new(64), new(64), count=count)[:2]
    return results
