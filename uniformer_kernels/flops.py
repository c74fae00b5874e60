"""What ``torch.utils.flop_counter`` counts for the kernels: products, two operations each.

As for PyTorch's own operators: a convolution counts every tap, those in the padding included;
norms, activations, sums and sorts count nothing; what a backward pass computes again counts again,
as for ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_map

from .kernels import KERNELS

Shape = Sequence[int]

_COUNTER = "torch.utils.flop_counter"


def _taps(x: Shape, weight: Shape) -> int:
    """A depthwise convolution."""
    return prod(x) * prod(weight[2:])


def _rows(x: Shape, *weights: Shape) -> int:
    """Linear layers, one behind another."""
    return prod(x[:-1]) * sum(map(prod, weights))


def _attention(qkv: Shape, queries: int | None = None) -> int:
    """Scores of ``[B, N, 3C]``: one product of all heads."""
    B, N, packed = qkv
    return B * (N if queries is None else queries) * N * packed // 3


def _windows(qkv: Shape, columns: int, size: int) -> int:
    """The same of every window, filled up."""
    B, N, packed = qkv
    count = -(-(N // columns) // size) * -(-columns // size)
    return _attention((B * count, size * size, packed))


_MULTIPLICATIONS: dict[str, Callable[[Any], int]] = {
    "bfloat16_feed_forward": lambda a: _rows(a.x, a.fc1_weight, a.fc2_weight),
    "bfloat16_pointwise_feed_forward": lambda a: _rows(
        a.x, a.pw_weight, a.fc1_weight, a.fc2_weight
    ),
    "bfloat16_linear": lambda a: _rows(a.x, a.weight),
    "convolution": lambda a: prod(a.results[0]) * prod(a.weight[1:]),
    "depthwise_conv3d": lambda a: _taps(a.x, a.weight),
    "depthwise_conv3d_backward": lambda a: (a.want_input + a.want_weight) * _taps(a.x, a.weight),
    "depthwise_conv3d_tma": lambda a: _taps(a.x, a.weight),
    "depthwise_conv3d_tma_backward": lambda a: (
        (a.want_input + a.want_weight) * _taps(a.x, a.weight)
    ),
    "depthwise_conv3d_tma_with_moments": lambda a: _taps(a.x, a.weight),
    "depthwise_conv3d_toeplitz": lambda a: _taps(a.x, a.weight),
    "depthwise_conv3d_toeplitz_backward": lambda a: (
        (a.want_input + a.want_weight) * _taps(a.x, a.weight)
    ),
    "depthwise_conv3d_toeplitz_with_moments": lambda a: _taps(a.x, a.weight),
    "depthwise_conv3d_with_moments": lambda a: _taps(a.x, a.weight),
    "depthwise_feed_forward": lambda a: (
        _taps(a.x, a.dw_weight) + _rows(a.x, a.pw_weight, a.fc1_weight, a.fc2_weight)
    ),
    "depthwise_linear": lambda a: _taps(a.x, a.dw_weight) + _rows(a.x, a.weight),
    "feed_forward": lambda a: _rows(a.x, a.fc1_weight, a.fc2_weight),
    # The hidden activations again and their gradient; then what is asked for.
    "feed_forward_backward": lambda a: (
        (1 + a.want_weights) * _rows(a.x, a.fc1_weight, a.fc2_weight)
        + a.want_input * _rows(a.x, a.fc1_weight)
    ),
    "split_feed_forward_backward": lambda a: (
        2 * _rows(a.x, a.fc1_weight, a.fc2_weight) + a.want_input * _rows(a.x, a.fc1_weight)
    ),
    "joint_attention": lambda a: 2 * _attention(a.qkv),
    "joint_attention_backward": lambda a: 5 * _attention(a.qkv),
    "joint_attention_with_score": lambda a: 2 * _attention(a.qkv) + _attention(a.qkv, a.queries),
    "joint_attention_with_score_backward": lambda a: (
        5 * _attention(a.qkv) + 3 * _attention(a.qkv, a.queries)
    ),
    "linear": lambda a: _rows(a.x, a.weight),
    "normalised_pooling": lambda a: 2 * prod(a.rows) * a.tokens[1],
    "normalised_pooling_backward": lambda a: (3 + 2 * a.want_tokens) * prod(a.rows) * a.tokens[1],
    "patch_embed": lambda a: prod(a.results[0]) * prod(a.weight[1:]),
    "pointwise_feed_forward": lambda a: _rows(a.x, a.pw_weight, a.fc1_weight, a.fc2_weight),
    "product": lambda a: _rows(a.x, a.weight),
    "weight_gradient": lambda a: prod(a.dy) * a.x[1],
    "window_attention": lambda a: 2 * _windows(a.qkv, a.columns, a.window_size),
    "window_attention_backward": lambda a: 5 * _windows(a.qkv, a.columns, a.window_size),
}
"""By kernel, how often it multiplies, from its arguments by name: shapes in place of tensors."""


def _formula(kernel: OpOverload, multiplications: Callable[[Any], int]) -> Callable[..., int]:
    names = [argument.name for argument in kernel._schema.arguments]

    def operations(*args: Any, out_val: Any, **_: Any) -> int:
        results = (out_val,) if isinstance(out_val, Tensor) else out_val
        values = dict(zip(names, args, strict=False), results=results)  # defaults are left out
        shapes = tree_map(lambda v: v.shape if isinstance(v, Tensor) else v, values)
        return 2 * multiplications(SimpleNamespace(**shapes))

    return operations


def _register(counter: ModuleType) -> None:
    for name, multiplications in _MULTIPLICATIONS.items():
        for kernel in KERNELS.get(name, ()):
            formula = _formula(kernel, multiplications)
            counter.register_flop_formula(kernel.overloadpacket, get_raw=True)(formula)


class _WhenImported(MetaPathFinder):
    """Registers behind the first import of the counter, which takes longer than all of ours."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _register(module)

        loader.exec_module = exec_module
        return spec


if _COUNTER in sys.modules:
    _register(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _WhenImported())
