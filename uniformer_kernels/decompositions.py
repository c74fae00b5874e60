"""The kernels in plain PyTorch, for programs that leave it: ONNX, TensorRT, OpenVINO."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from . import ops, reference  # noqa: F401 the former declares the kernels
from .kernels import KERNELS
from .reference.attention import heads
from .reference.window_attention import from_windows, windows

_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """What every kernel of a forward pass means, for ``ExportedProgram.run_decompositions``::

        program = torch.export.export(model.eval(), (x,), dynamic_shapes=({0: batch},))
        program = program.run_decompositions(uniformer_kernels.decompositions())

    What is left are operators of PyTorch. Of tokens with equal importance those in front are kept,
    here as by the kernels, wherever sorting is stable: on CPUs and, by its definition, in ONNX.

    Returns:
        Functions by operator, of all backends.
    """
    table = {kernel: _FUNCTIONS[name] for name in _FUNCTIONS for kernel in KERNELS.get(name, ())}
    return {**table, torch.ops.aten.sort.stable: _sort}


def _decomposes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function under its name; its results are contiguous, as the kernel's."""

    def contiguous(*args: Any) -> Any:
        results = function(*args)
        if isinstance(results, Tensor):
            return results.contiguous()
        return tuple(t.contiguous() for t in results)

    _FUNCTIONS[function.__name__.removeprefix("_")] = contiguous
    return function


def _sort(
    x: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """ONNX has no stable sort of that name: its only one is."""
    return torch.ops.aten.sort.default(x, dim, descending)


@_decomposes
def _depthwise_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    return reference.depthwise_conv3d(x, weight, bias, residual=residual)


@_decomposes
def _depthwise_conv3d_toeplitz(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool
) -> Tensor:
    return reference.depthwise_conv3d(x, weight, bias, residual=residual)


@_decomposes
def _depthwise_conv3d_tma(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    return reference.depthwise_conv3d(x, weight, bias, residual=residual)


@_decomposes
def _depthwise_conv3d_with_moments(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    return reference.depthwise_conv3d_with_moments(x, weight, bias, residual=residual, shift=shift)


@_decomposes
def _depthwise_conv3d_toeplitz_with_moments(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    return reference.depthwise_conv3d_with_moments(x, weight, bias, residual=residual, shift=shift)


@_decomposes
def _depthwise_conv3d_tma_with_moments(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    return reference.depthwise_conv3d_with_moments(x, weight, bias, residual=residual, shift=shift)


@_decomposes
def _moments(x: Tensor, shift: Tensor | None) -> Tensor:
    return reference.moments(x, shift=shift)


@_decomposes
def _scale_shift(x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, gelu: bool) -> Tensor:
    y = (x - center) * scale + shift
    return (F.gelu(y) if gelu else y).to(x.dtype)


@_decomposes
def _fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None,
    statistics: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    count: int | None,
    eps: float,
) -> tuple[Tensor, ...]:
    *folded, found = reference.fold_batch_norm(
        weight, bias, mean, statistics, norm_weight, norm_bias, count=count, eps=eps
    )
    nothing = statistics.new_empty(0, dtype=torch.float32)
    return *folded, nothing if found is None else found


@_decomposes
def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    return reference.patch_embed(x, weight, bias, stride=stride, padding=padding)


@_decomposes
def _patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    eps: float,
    save: bool,
) -> tuple[Tensor, ...]:
    y = reference.patch_embed(x, weight, bias, stride=stride, padding=padding)
    nothing = y.new_empty(0), *(y.new_empty(0, dtype=torch.float32) for _ in range(2))
    if norm_weight is None:
        return y, *nothing
    z, mean, rstd = _layer_norm(y, norm_weight, norm_bias, eps)
    return (z, y, mean, rstd) if save else (z, *nothing)


@_decomposes
def _layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    variance, mean = torch.var_mean(x.float(), -1, correction=0)
    rstd = (variance + eps).rsqrt()
    return reference.layer_norm(x, weight, bias, eps=eps), mean.flatten(), rstd.flatten()


@_decomposes
def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    packed: Tensor | None = None,
) -> Tensor:
    return reference.linear(x, weight, bias, activation=activation or None, residual=residual)


@_decomposes
def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    y = reference.linear(x, weight, bias, activation=activation or None, residual=residual)
    return y, reference.linear(x, weight, bias) if save and activation else x.new_empty(0)


@_decomposes
def _feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    fc1_packed: Tensor | None = None,
    fc2_packed: Tensor | None = None,
) -> Tensor:
    return reference.feed_forward(
        x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation=activation, residual=residual
    )


_FUNCTIONS["bfloat16_linear"] = _FUNCTIONS["product"]
_FUNCTIONS["bfloat16_feed_forward"] = _FUNCTIONS["feed_forward"]


@_decomposes
def _pointwise_feed_forward(
    x: Tensor,
    residual: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *packed: Tensor | None,
) -> Tensor:
    r = reference.linear(x, pw_weight, pw_bias, residual=residual)
    layers = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    return reference.feed_forward(r.to(x.dtype), *layers, residual=r)


_FUNCTIONS["bfloat16_pointwise_feed_forward"] = _FUNCTIONS["pointwise_feed_forward"]


@_decomposes
def _joint_attention(qkv: Tensor, num_heads: int, scale: float) -> tuple[Tensor, Tensor]:
    return reference.joint_attention(qkv, num_heads, scale=scale), _lse(qkv, num_heads, scale)


@_decomposes
def _joint_attention_with_score(
    qkv: Tensor, num_heads: int, queries: int | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    results = reference.joint_attention_with_score(qkv, num_heads, queries=queries, scale=scale)
    return *results, _lse(qkv, num_heads, scale)


@_decomposes
def _window_attention(
    qkv: Tensor, bias: Tensor, num_heads: int, columns: int, window_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    grids = qkv.unflatten(1, (-1, columns)).unsqueeze(1)
    y = reference.window_attention(grids, bias, num_heads, window_size, scale=scale)
    lse = _lse(windows(grids, bias, window_size), num_heads, scale)
    lse = from_windows(lse.mT, grids.shape[:4], window_size)
    return y.flatten(1, 3), lse.flatten(1, 3).mT


def _lse(qkv: Tensor, num_heads: int, scale: float) -> Tensor:
    """Base 2 logarithm of the softmax's denominators, which a backward pass wants."""
    q, k, _ = heads(qkv, num_heads)
    return ((q.float() @ k.float().mT) * scale).logsumexp(-1) / math.log(2)


@_decomposes
def _normalised_pooling(
    rows: Tensor, tokens: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, mean, rstd = _layer_norm(tokens.to(rows.dtype), None, None, eps)
    scores = rows @ y.mT
    lse = scores.logsumexp(-1) / math.log(2)
    return scores.softmax(-1) @ y, lse, *(t.view(tokens.shape[:2]) for t in (mean, rstd))


@_decomposes
def _token_shrink(
    x: Tensor, importance: Tensor, keep: int, prefix: Tensor | None
) -> tuple[Tensor, Tensor]:
    return reference.token_shrink(x, importance, keep, prefix=prefix)


@_decomposes
def _token_recover_with_importance(
    x: Tensor,
    index: Tensor,
    kept: Tensor,
    delta: Tensor,
    importance: Tensor,
    score: Tensor,
    trade_off: float,
) -> tuple[Tensor, Tensor]:
    return reference.token_recover_with_importance(
        x, index, kept, delta, importance, score, trade_off=trade_off
    )


for _same in (
    reference.depthwise_feed_forward,
    reference.depthwise_linear,
    reference.token_recover,
):
    _decomposes(_same)
