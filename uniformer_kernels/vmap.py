"""``torch.vmap`` over the kernels: the mapped axis becomes a part of the batch where it can.

Kernels that sum over the batch, as those that make gradients of parameters, and calls with
parameters of their own for every index of the mapped axis run once for every index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

# The arguments whose first axis is the batch, for kernels whose results have it first, too.
_BATCHED = {
    "bfloat16_feed_forward": ("x", "residual"),
    "bfloat16_linear": ("x", "residual"),
    "bfloat16_pointwise_feed_forward": ("x", "residual"),
    "convolution": ("x",),
    "depthwise_conv3d": ("x",),
    "depthwise_feed_forward": ("x", "residual"),
    "depthwise_linear": ("x",),
    "feed_forward": ("x", "residual"),
    "joint_attention": ("qkv",),
    "joint_attention_backward": ("dout", "qkv", "out", "lse"),
    "joint_attention_with_score": ("qkv",),
    "joint_attention_with_score_backward": ("dout", "dscore", "qkv", "out", "lse"),
    "layer_norm": ("x",),
    "pointwise_feed_forward": ("x", "residual"),
    "product": ("x", "residual"),
    "token_recover": ("x", "index", "kept", "delta"),
    "token_recover_backward": ("dy", "index"),
    "token_recover_with_importance": ("x", "index", "kept", "delta", "importance", "score"),
    "token_recover_with_importance_backward": ("dy", "dupdated", "index"),
    "token_shrink": ("x", "importance", "prefix"),
    "token_shrink_backward": ("dtokens", "x", "importance", "index"),
    "window_attention": ("qkv",),
}


def rule(kernel: OpOverload) -> Callable[..., tuple[Any, Any]]:
    """What ``torch.library.register_vmap`` asks for of a kernel."""
    names = [argument.name for argument in kernel._schema.arguments]
    batched = set(_BATCHED.get(kernel._schema.name.split("::")[1], ()))

    def run(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        given_names = names[: len(args)]  # defaults are left out
        dims = dict(zip(given_names, in_dims, strict=True))
        mapped = {name for name, dim in dims.items() if isinstance(dim, int)}  # lists have lists
        given = {
            name: a.movedim(dims[name], 0) if name in mapped else a
            for name, a in zip(given_names, args, strict=True)
        }
        run = _at_once if mapped <= batched and _have_batch(given, mapped) else _one_by_one
        results = run(kernel, info.batch_size, given, mapped, batched)
        return (results, (0,) * len(results)) if len(results) > 1 else (results[0], 0)

    return run


def _have_batch(given: dict[str, Any], mapped: set[str]) -> bool:
    """Whether there is something, and a batch in front of a vector."""
    return all(given[name].dim() > 2 and given[name].shape[0] > 0 for name in mapped)


def _at_once(
    kernel: OpOverload, count: int, given: dict[str, Any], mapped: set[str], batched: set[str]
) -> tuple[Tensor, ...]:
    for name in batched:
        if given[name] is not None:
            t = given[name]
            given[name] = (t if name in mapped else t.expand(count, *t.shape)).flatten(0, 1)
    return tuple(t.unflatten(0, (count, t.shape[0] // count)) for t in _call(kernel, given))


def _one_by_one(
    kernel: OpOverload, count: int, given: dict[str, Any], mapped: set[str], _: set[str]
) -> tuple[Tensor, ...]:
    if count == 0:
        raise ValueError(f"vmap of {kernel}: expected an axis of at least 1, got 0")
    each = [
        _call(kernel, {name: a[i] if name in mapped else a for name, a in given.items()})
        for i in range(count)
    ]
    return tuple(torch.stack(results) for results in zip(*each, strict=True))


def _call(kernel: OpOverload, given: dict[str, Any]) -> tuple[Tensor, ...]:
    results = kernel(*given.values())
    return (results,) if isinstance(results, Tensor) else tuple(results)
