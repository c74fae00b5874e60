"""The patch stem: a strided convolution as one matrix product, and the LayerNorm after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, onednn, reference, triton
from ..backends import Implementation, Operator, always, needs_grad
from ..kernels import kernels, register_fake
from ..once import once_differentiable
from .layer_norm import cpu_layer_norm
from .linear import _before_activation, _cpu_declines, _cpu_linear

_NAME = "patch_embed"


def _patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """``[B, T', H', W', kt, kh, kw, C]``, a view but for the padding."""
    if any(padding):
        pt, ph, pw = padding
        x = F.pad(x, (0, 0, pw, pw, ph, ph, pt, pt))
    if tuple(kernel) == tuple(stride):
        return _side_by_side(x, kernel)
    for axis in range(3):
        x = x.unfold(1 + axis, kernel[axis], stride[axis])
    return x.movedim(4, -1)


def _side_by_side(x: Tensor, kernel: Sequence[int]) -> Tensor:
    """Patches that do not overlap; in backward nothing is filled with zeros, as ``unfold`` does."""
    T, H, W = (size // step * step for size, step in zip(x.shape[1:4], kernel, strict=True))
    if x.shape[1:4] != (T, H, W):
        x = x[:, :T, :H, :W]
    for axis in (3, 2, 1):
        x = x.unflatten(axis, (-1, kernel[axis - 1]))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7)


def _cpu_patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0, 0),
    eps: float = 1e-5,
) -> Tensor:
    if onednn.serves(x) and not needs_grad(x, weight, bias):
        y = onednn.convolution(x, weight, bias, stride, padding)
    else:  # the backward of a product is faster than that of a convolution
        patches = _patches(x, weight.shape[2:], stride, padding)
        rows = patches.reshape(*patches.shape[:4], weight[0].numel())
        y = _cpu_linear(rows, weight.movedim(1, -1).reshape(weight.shape[0], -1), bias)
    return y if norm_weight is None else cpu_layer_norm(y, norm_weight, norm_bias, eps=eps)


class _PatchEmbed(torch.autograd.Function):
    """Triton's kernels; keeps ``x`` and what is normalised."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return kernels("triton").patch_embed(
            x, weight, bias, norm_weight, norm_bias, stride, padding, eps, True
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        x, weight, _, norm_weight, _, ctx.stride, ctx.padding, _ = inputs
        _, *saved = output
        ctx.save_for_backward(x, weight, norm_weight, *saved)
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if dy is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        x, weight, norm_weight, y, mean, rstd = ctx.saved_tensors
        want_x, want_weight, want_bias, want_scale, want_shift, *_ = ctx.needs_input_grad
        dscale = dshift = None
        want_product = want_x or want_weight or want_bias
        if norm_weight is not None:
            dy, dscale, dshift, _ = kernels("triton").layer_norm_backward(
                dy, y, norm_weight, None, mean, rstd, want_product, want_scale or want_shift, False
            )
        dx = dweight = dbias = None
        if want_product:
            dy, _residual, dbias = _before_activation(dy, None, "", x.dtype, True, False, want_bias)
        if want_weight:
            patches = _patches(x, weight.shape[2:], ctx.stride, ctx.padding)
            dweight = torch.mm(dy.t(), patches.reshape(dy.shape[0], weight[0].numel()))
            dweight = dweight.view(weight.movedim(1, -1).shape).movedim(-1, 1)
        if want_x:
            packed = weight.movedim(1, -1)
            patches = torch.mm(dy, packed.reshape(weight.shape[0], -1))
            counts = _counts(x, weight, ctx.stride, ctx.padding)
            patches = patches.view(x.shape[0], *counts, *packed.shape[1:])
            dx = _fold(patches, x.shape[1:4], ctx.stride, ctx.padding)
        return (
            dx,
            dweight,
            dbias,
            dscale if want_scale else None,
            dshift if want_shift else None,
            None,
            None,
            None,
        )


def _counts(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> list[int]:
    """Patches along time, height and width."""
    return [
        (size + 2 * pad - kernel) // step + 1
        for size, kernel, step, pad in zip(
            x.shape[1:4], weight.shape[2:], stride, padding, strict=True
        )
    ]


def _fold(
    patches: Tensor, sizes: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The transpose of ``_patches``: every position's sum over the patches it is part of."""
    kernel, dtype = patches.shape[4:7], patches.dtype
    if tuple(kernel) == tuple(stride) and not any(padding):
        folded = patches.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        for axis, size in enumerate(sizes):
            folded = _pad(folded, 1 + axis, 0, size - folded.shape[1 + axis])
        return folded
    if any(k > step for k, step in zip(kernel, stride, strict=True)):
        patches = patches.to(torch.promote_types(dtype, torch.float32))
    for axis, (size, step, pad) in enumerate(zip(sizes, stride, padding, strict=True)):
        patches = _fold_axis(patches, 1 + axis, size, step, pad)
    return patches.to(dtype)


def _fold_axis(patches: Tensor, axis: int, size: int, stride: int, padding: int) -> Tensor:
    """Fold one axis, whose kernel is axis 4: as parts one stride long, which never overlap."""
    patches = patches.movedim(4, axis + 1)
    parts = -(-patches.shape[axis + 1] // stride)
    patches = _pad(patches, axis + 1, 0, parts * stride - patches.shape[axis + 1])
    patches = patches.unflatten(axis + 1, (parts, stride))
    first, *others = (
        _pad(part.flatten(axis, axis + 1), axis, before * stride, (parts - 1 - before) * stride)
        for before, part in enumerate(patches.unbind(axis + 1))
    )
    folded = sum(others, first)
    return _pad(folded, axis, -padding, size + padding - folded.shape[axis])


def _pad(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Zeros on both sides of an axis; a negative number cuts off."""
    if before == after == 0:
        return x
    return F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [before, after])


def _triton_patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0, 0),
    eps: float = 1e-5,
) -> Tensor:
    tensors = (x, weight, bias, norm_weight, norm_bias)
    if needs_grad(*tensors):
        return _PatchEmbed.apply(*tensors, stride, padding, eps)[0]
    return kernels("triton").patch_embed(*tensors, stride, padding, eps, False)[0]


def _triton_declines(x: Tensor, *_: Any, **__: Any) -> str | None:
    return triton.declines(x)


@register_fake(_NAME)
def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    eps: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (x.shape[0], *_counts(x, weight, stride, padding), weight.shape[0])
    saved = shape if save and norm_weight is not None else (0,)
    statistics = (math.prod(saved[:-1]) if len(saved) > 1 else 0,)
    return (
        x.new_empty(shape),
        x.new_empty(saved),
        x.new_empty(statistics, dtype=torch.float32),
        x.new_empty(statistics, dtype=torch.float32),
    )


_patch_embed = Operator(
    _NAME,
    cpu=Implementation(_cpu_patch_embed, _cpu_declines),
    triton=Implementation(_triton_patch_embed, _triton_declines),
    reference=Implementation(reference.patch_embed, always),
)


def patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0, 0),
    eps: float = 1e-5,
) -> Tensor:
    """Embed patches: ``layer_norm(conv3d(x))``, the stem in front of every stage.

    Args:
        x: ``[B, T, H, W, C]``, any strides (a permuted view of ``[B, C, T, H, W]`` is welcome).
        weight: ``[C_out, C, kt, kh, kw]``.
        bias: ``[C_out]`` or ``None``.
        norm_weight: ``[C_out]``, LayerNorm's weight; ``None`` for no normalisation.
        norm_bias: ``[C_out]`` or ``None``.
        stride: of time, height and width.
        padding: zeros on both sides of time, height and width.
        eps: LayerNorm's.

    Returns:
        ``[B, T', H', W', C_out]``, contiguous, ``T' = (T + 2 padding - kt) // stride + 1``.

    Raises:
        ValueError: a shape or device that does not fit, or a map smaller than the kernel.
        TypeError: a dtype that does not fit.
    """
    checks.shape(_NAME, "x", x, ["B", "T", "H", "W", "C"])
    checks.shape(_NAME, "weight", weight, ["C_out", x.shape[4], "kt", "kh", "kw"])
    for name, vector in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if vector is not None:
            checks.shape(_NAME, name, vector, [weight.shape[0]])
    if norm_weight is None and norm_bias is not None:
        raise ValueError(f"{_NAME}: norm_bias: expected norm_weight with it, got None")
    if len(stride) != 3 or min(stride) < 1:
        raise ValueError(f"{_NAME}: stride: expected three positive numbers, got {stride}")
    if len(padding) != 3 or min(padding) < 0:
        raise ValueError(f"{_NAME}: padding: expected three numbers from 0, got {padding}")
    for axis, size, kernel, pad in zip("THW", x.shape[1:4], weight.shape[2:], padding, strict=True):
        if size + 2 * pad < kernel:
            raise ValueError(
                f"{_NAME}: x: expected {axis} of at least {kernel - 2 * pad} for a kernel of "
                f"{kernel} and padding {pad}, got {size}"
            )
    checks.floating(_NAME, "x", x)
    x, weight, bias, norm_weight, norm_bias = checks.autocast(
        x, weight, bias, norm_weight, norm_bias
    )
    checks.alike(
        _NAME, ("x", x), weight=weight, bias=bias, norm_weight=norm_weight, norm_bias=norm_bias
    )
    return _patch_embed(
        x, weight, bias, norm_weight, norm_bias, stride=stride, padding=padding, eps=eps
    )
