"""Matrix products through oneDNN, as operators of our own.

On a CPU PyTorch sends float32 products to MKL, which runs at half speed on AMD processors. oneDNN
reaches the peak there, and PyTorch carries it as the operator its compiler uses for frozen models;
other dtypes already go to oneDNN. The operators here are opaque, as the compiler takes PyTorch's
with constant weights only. All matrices are float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension
from .kernels import register_fake

QUICK = 1.702  # quick_gelu(x) = x sigmoid(QUICK x) = silu(QUICK x) / QUICK

_HIDDEN = 2**21  # hidden activations that exist at once: they stay in the caches

_LIBRARY = torch.library.Library("uniformer_kernels", "FRAGMENT")
_LIBRARY.define("product(Tensor x, Tensor weight, Tensor? bias, bool gelu) -> Tensor")
_LIBRARY.define(
    "convolution(Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding) "
    "-> Tensor"
)
_LIBRARY.define(
    "feed_forward(Tensor x, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, "
    "Tensor? fc2_bias, str activation, Tensor? residual) -> Tensor"
)
_LIBRARY.define(
    "feed_forward_backward(Tensor dy, Tensor x, Tensor fc1_weight, Tensor? fc1_bias, "
    "Tensor fc2_weight, str activation, bool want_input, bool want_weights) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)

# A private operator: without it everything still works, through F.linear.
_HAS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def serves(x: Tensor, *weights: Tensor) -> bool:
    """Whether products of these rows and weights, on a CPU, go through here; none is empty."""
    loaded = _extension.missing is None  # the weight gradient's kernel
    full = all(t.numel() > 0 for t in (x, *weights))
    return _HAS and loaded and full and x.is_cpu and x.dtype == torch.float32


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``gelu(x weightᵀ + bias)`` of matrices."""
    return torch.ops.uniformer_kernels.product(x, weight, bias, gelu)


def weight_gradient(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """``dyᵀ x`` and the sum of ``dy``'s rows, by a kernel: oneDNN would transpose both first."""
    return torch.ops.uniformer_kernels.weight_gradient(_adjacent(dy), _adjacent(x))


@register_fake("weight_gradient")
def _fake_weight_gradient(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(dy.shape[1], x.shape[1]), x.new_empty(dy.shape[1])


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """``conv3d`` of channels-last maps ``[B, T, H, W, C]``, without gradients."""
    return torch.ops.uniformer_kernels.convolution(x, weight, bias, stride, padding)


def rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _adjacent(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _matrix(x: Tensor) -> Tensor:
    """The matrix as oneDNN can read it, by rows or by columns: it ignores any other strides."""
    (rows, columns), (row, column) = x.shape, x.stride()
    if (column == 1 and row >= columns) or (row == 1 and column >= rows):
        return x
    return x.contiguous()


@torch.library.impl(_LIBRARY, "product", "CPU")
def _product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    activation = ("gelu", [], "none") if gelu else ("none", [], "")
    if bias is not None:
        bias = bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(_matrix(x), _matrix(weight), bias, *activation)


@register_fake("product")
def _fake_product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.impl(_LIBRARY, "convolution", "CPU")
def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    # Of a single clip PyTorch itself takes any map for too small, and is four times slower without.
    x = x.movedim(-1, 1).contiguous(memory_format=torch.channels_last_3d)
    y = torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
    return y.movedim(1, -1).contiguous()


@register_fake("convolution")
def _fake_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    axes = zip(x.shape[1:4], weight.shape[2:], stride, padding, strict=True)
    sizes = [(size + 2 * pad - kernel) // step + 1 for size, kernel, step, pad in axes]
    return x.new_empty(x.shape[0], *sizes, weight.shape[0])


# The feed-forward network by parts of its rows: the hidden activations are the widest tensor of any
# block, and fresh memory for all of them costs more than computing them again.


def _parts(count: int, hidden: int) -> Iterator[slice]:
    step = max(_HIDDEN // max(hidden, 1), 1)
    return (slice(first, first + step) for first in range(0, count, step))


@torch.library.impl(_LIBRARY, "feed_forward", "CPU")
def _feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    (hidden, _), out = fc1_weight.shape, fc2_weight.shape[0]
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    y = x.new_empty((*x.shape[:-1], out), dtype=dtype)
    x, y_rows = rows(x), y.view(-1, out)
    residual = None if residual is None else rows(residual)
    gelu = activation == "gelu"
    for part in _parts(len(x), hidden):
        z = _product(x[part], fc1_weight, fc1_bias, gelu)
        branch = _product(z if gelu else quick_gelu_(z), fc2_weight, fc2_bias)
        if residual is None:
            y_rows[part] = branch
        else:
            torch.add(residual[part], branch, out=y_rows[part])
    return y


@torch.library.impl(_LIBRARY, "feed_forward_backward", "CPU")
def _feed_forward_backward(
    dy: Tensor,
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    activation: str,
    want_input: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if want_input else 0)
    dx_rows = dx.view(-1, x.shape[-1]) if want_input else dx
    shapes = (fc1_weight.shape, fc1_weight.shape[:1], fc2_weight.shape, fc2_weight.shape[:1])
    sums = [x.new_zeros(shape if want_weights else 0) for shape in shapes]
    dy, x = rows(dy).to(x.dtype), rows(x)
    # oneDNN would transpose them anew for every part.
    fc1_columns, fc2_columns = fc1_weight.t().contiguous(), fc2_weight.t().contiguous()
    for part in _parts(len(x), fc1_weight.shape[0]):
        z = _product(x[part], fc1_weight, fc1_bias)
        dz = _activation_backward(_product(dy[part], fc2_columns, None), z, activation)
        if want_weights:
            hidden = F.gelu(z) if activation == "gelu" else quick_gelu_(z)
            gradients = (*weight_gradient(dz, x[part]), *weight_gradient(dy[part], hidden))
            torch._foreach_add_(sums, gradients)
        if want_input:
            dx_rows[part] = _product(dz, fc1_columns, None)
    return dx, *sums


def quick_gelu_(z: Tensor) -> Tensor:
    """In place."""
    return F.silu(z.mul_(QUICK), inplace=True).mul_(1 / QUICK)


def _activation_backward(dhidden: Tensor, z: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(dhidden, z)
    return torch.ops.aten.silu_backward(dhidden, QUICK * z)
