"""Attention inside the windows of a grid, over packed queries, keys and values."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _extension, checks, reference, triton
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake
from ..once import once_differentiable
from .attention import adjacent, head_dim_declines, scale_of

_NAME = "window_attention"


class _WindowAttention(torch.autograd.Function):
    """A backend's kernels, differentiable once; they read every window where it lies."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        qkv: Tensor,
        bias: Tensor,
        num_heads: int,
        columns: int,
        window_size: int,
        scale: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        return kernels(backend).window_attention(qkv, bias, num_heads, columns, window_size, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        qkv, bias, *ctx.options, ctx.backend = inputs
        ctx.save_for_backward(qkv, bias, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if dout is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        dqkv, dbias = kernels(ctx.backend).window_attention_backward(
            dout.contiguous(), *ctx.saved_tensors, *ctx.options
        )
        want_qkv, want_bias, *others = ctx.needs_input_grad
        return (
            dqkv if want_qkv else None,
            dbias if want_bias else None,
            *(None for _ in others),
        )


def _kernel(
    backend: str,
    qkv: Tensor,
    bias: Tensor | None,
    num_heads: int,
    window_size: int,
    *,
    scale: float | None = None,
) -> Tensor:
    *grid, packed = qkv.shape
    tokens = adjacent(qkv.flatten(0, 1).flatten(1, 2))  # no copy unless the strides are odd ones
    scale = scale_of(tokens, num_heads, scale)
    bias_or_zeros = qkv.new_zeros(packed) if bias is None else bias.contiguous()
    options = num_heads, max(grid[3], 1), window_size, scale
    if needs_grad(qkv, bias):
        y, _ = _WindowAttention.apply(tokens, bias_or_zeros, *options, backend)
    else:
        y, _ = kernels(backend).window_attention(tokens, bias_or_zeros, *options)
    return y.reshape(*grid, packed // 3)


def _cpu(qkv: Tensor, *args: Any, **options: Any) -> Tensor:
    if _extension.missing is not None or qkv.dtype == torch.float64:
        return reference.window_attention(qkv, *args, **options)
    return _kernel("cpu", qkv, *args, **options)


def _cpu_declines(qkv: Tensor, *_: Any, **__: Any) -> str | None:
    return None if qkv.device.type == "cpu" else f"qkv is on {qkv.device}"


def _triton_declines(
    qkv: Tensor, bias: Tensor | None, num_heads: int, *_: Any, **__: Any
) -> str | None:
    return triton.declines(qkv, "qkv") or head_dim_declines(qkv, num_heads)


@register_fake(_NAME)
def _fake(
    qkv: Tensor, bias: Tensor, num_heads: int, columns: int, window_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    B, N, packed = qkv.shape
    return (
        qkv.new_empty(B, N, packed // 3),
        qkv.new_empty(B, num_heads, N, dtype=torch.float32),
    )


@register_fake(f"{_NAME}_backward")
def _fake_backward(
    dout: Tensor,
    qkv: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    columns: int,
    window_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), qkv.new_empty(qkv.shape[-1])


_window_attention = Operator(
    _NAME,
    cpu=Implementation(_cpu, _cpu_declines),
    triton=Implementation(partial(_kernel, "triton"), _triton_declines),
    reference=Implementation(reference.window_attention, always),
)


def window_attention(
    qkv: Tensor,
    bias: Tensor | None,
    num_heads: int,
    window_size: int,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attend inside windows: ``softmax(scale q kᵀ) v`` for every head of every window.

    Windows of ``window_size x window_size`` start at the grid's first corner; where they reach over
    it at the right and at the bottom, every missing position is one more key and value, which are
    those of ``bias``: what a linear layer with this bias makes of the zeros that the official
    models pad the normalised grid with. No mask, no shift (TPAMI 2023, section 3.4). The copies of
    plain PyTorch are in ``reference.window_attention``.

    Args:
        qkv: ``[B, T, H, W, 3C]``, laid out ``[q | k | v]``, each head after head; a window never
            reaches over two frames.
        bias: ``[3C]``, its first third without effect; ``None`` for zeros.
        num_heads: heads; ``C`` is a multiple of it.
        window_size: height and width of a window, at least 1; may exceed the grid's.
        scale: factor on the scores, ``head_dim ** -0.5`` by default.

    Returns:
        ``[B, T, H, W, C]``, contiguous, in ``qkv``'s dtype; scores, softmax and sums are float32
        (float64 for float64).

    Raises:
        ValueError: a shape, size or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    checks.shape(_NAME, "qkv", qkv, ["B", "T", "H", "W", "3C"])
    checks.floating(_NAME, "qkv", qkv)
    if num_heads < 1 or qkv.shape[4] % (3 * num_heads):
        raise ValueError(
            f"{_NAME}: num_heads: expected a divisor of C for qkv [B, T, H, W, 3C], "
            f"got {num_heads} with qkv {list(qkv.shape)}"
        )
    if window_size < 1:
        raise ValueError(f"{_NAME}: window_size: expected at least 1, got {window_size}")
    if bias is not None:
        checks.shape(_NAME, "bias", bias, [qkv.shape[4]])
    qkv, bias = checks.autocast(qkv, bias)
    checks.alike(_NAME, ("qkv", qkv), bias=bias)
    return _window_attention(qkv, bias, num_heads, window_size, scale=scale)
