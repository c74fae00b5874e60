"""Matrix products through oneDNN, as operators of our own.

On a CPU PyTorch sends float32 products to MKL, which runs at half speed on AMD processors. oneDNN
reaches the peak there, and PyTorch carries it as the operator its compiler uses for frozen models;
other dtypes already go to oneDNN. The operators here are opaque, as the compiler takes PyTorch's
with constant weights only. All matrices are float32, except where any dtype is said to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension, bfloat16, reference
from .backends import chosen_backend, in_forward_mode
from .kernels import register_fake

QUICK = 1.702  # quick_gelu(x) = x sigmoid(QUICK x) = silu(QUICK x) / QUICK

_HIDDEN = 2**23  # bytes of hidden activations that exist at once: they stay in the caches

_LIBRARY = torch.library.Library("uniformer_kernels", "FRAGMENT")
_LIBRARY.define(
    "product(Tensor x, Tensor weight, Tensor? bias, str activation, Tensor? residual, "
    "Tensor? packed=None) -> Tensor"
)
_LIBRARY.define(
    "convolution(Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding) "
    "-> Tensor"
)
_LIBRARY.define(
    "feed_forward(Tensor x, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, "
    "Tensor? fc2_bias, str activation, Tensor? residual, Tensor? fc1_packed=None, "
    "Tensor? fc2_packed=None) -> Tensor"
)
_LIBRARY.define(
    "pointwise_feed_forward(Tensor x, Tensor residual, Tensor pw_weight, Tensor? pw_bias, "
    "Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, "
    "Tensor? pw_packed=None, Tensor? fc1_packed=None, Tensor? fc2_packed=None) -> Tensor"
)
_LIBRARY.define(
    "feed_forward_backward(Tensor dy, Tensor x, Tensor fc1_weight, Tensor? fc1_bias, "
    "Tensor fc2_weight, str activation, bool want_input, bool want_weights) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)

_FEW = 32  # rows of float32 whose products cost less than a weight's three parts of bfloat16

# A private operator: without it everything still works, through F.linear.
_HAS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def serves(x: Tensor, *weights: Tensor) -> bool:
    """Whether products of these rows and weights, on a CPU, go through here; none is empty."""
    loaded = _extension.missing is None  # the weight gradient's kernel
    full = all(t.numel() > 0 for t in (x, *weights))
    if chosen_backend() == "reference" or in_forward_mode():
        return False
    known = x.dtype == torch.bfloat16 or (_HAS and x.dtype == torch.float32)
    return known and loaded and full and x.is_cpu


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """``[residual +] activation(x weightᵀ + bias)``, in the wider dtype of ``x`` and residual."""
    return torch.ops.uniformer_kernels.product(x, weight, bias, activation, residual, packed)


def weight_gradient(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """``dyᵀ x`` and the sum of ``dy``'s rows, in float32: oneDNN would transpose both first."""
    return torch.ops.uniformer_kernels.weight_gradient(_adjacent(dy), _adjacent(x))


@register_fake("weight_gradient")
def _fake_weight_gradient(dy: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    sizes = (dy.shape[1], x.shape[1]), (dy.shape[1],)
    return tuple(x.new_empty(size, dtype=torch.float32) for size in sizes)


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
    # Not Size.numel(), which makes a number of what torch.export keeps open.
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _splits(x: Tensor, packed: Tensor | None = None) -> bool:
    """Whether products of these rows of float32 are made of bfloat16's."""
    many = packed is not None or math.prod(x.shape[:-1]) > _FEW
    return x.dtype == torch.float32 and many and bfloat16.multiplies(x.dtype)


def _adjacent(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _matrix(x: Tensor) -> Tensor:
    """The matrix as oneDNN can read it, by rows or by columns: it ignores any other strides."""
    (rows, columns), (row, column) = x.shape, x.stride()
    if (column == 1 and row >= columns) or (row == 1 and column >= rows):
        return x
    return x.contiguous()


# Without gradients, as exported programs pass parameters that ask for some.
@torch.library.impl(_LIBRARY, "product", "CPU")
@torch.no_grad()
def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str = "",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    if x.dtype == torch.bfloat16 or _splits(x, packed):
        return bfloat16.linear(x, weight, bias, activation, residual, packed)
    gelu = activation == "gelu"
    fused: tuple[str, list, str] = ("gelu", [], "none") if gelu else ("none", [], "")
    if bias is not None:
        bias = bias.contiguous()
    y = torch.ops.mkldnn._linear_pointwise(_matrix(x), _matrix(weight), bias, *fused)
    if activation == "quick_gelu":
        quick_gelu_(y)
    if residual is None:
        return y
    return y.add_(residual) if residual.dtype == y.dtype else residual + y


@register_fake("product")
def _fake_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    packed: Tensor | None = None,
) -> Tensor:
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


@torch.library.impl(_LIBRARY, "convolution", "CPU")
@torch.no_grad()
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


def _parts(x: Tensor, hidden: int) -> Iterator[slice]:
    step = max(_HIDDEN // (x.element_size() * max(hidden, 1)), 1)
    return (slice(first, first + step) for first in range(0, len(x), step))


@torch.library.impl(_LIBRARY, "feed_forward", "CPU")
@torch.no_grad()
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
    (hidden, _), out = fc1_weight.shape, fc2_weight.shape[0]
    shape, x = (*x.shape[:-1], out), rows(x)
    residual = None if residual is None else rows(residual)
    if bfloat16.multiplies(x.dtype):
        layers = fc1_weight, fc1_bias, fc2_weight, fc2_bias
        packed = fc1_packed, fc2_packed
        y = bfloat16.feed_forward(x, *layers, activation, residual, *packed)
        # Not a view: autograd lets nobody write to those a Function returns.
        return torch.ops.aten._unsafe_view(y, shape)
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    y = x.new_empty(shape, dtype=dtype)
    y_rows = y.view(-1, out)
    for part in _parts(x, hidden):
        branch = _branch(x[part], fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation)
        if residual is None:
            y_rows[part] = branch
        else:
            torch.add(residual[part], branch, out=y_rows[part])
    return y


@torch.library.impl(_LIBRARY, "pointwise_feed_forward", "CPU")
@torch.no_grad()
def _pointwise_feed_forward(
    x: Tensor,
    residual: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    pw_packed: Tensor | None = None,
    fc1_packed: Tensor | None = None,
    fc2_packed: Tensor | None = None,
) -> Tensor:
    """Any dtype will do: what the network is added to stays in the caches as well."""
    shape, x, residual = residual.shape, rows(x), rows(residual)
    if serves(x, pw_weight, fc1_weight) and bfloat16.multiplies(x.dtype):
        layers = pw_weight, pw_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias
        packed = pw_packed, fc1_packed, fc2_packed
        return bfloat16.pointwise_feed_forward(x, residual, *layers, *packed).view(shape)
    y = x.new_empty(shape, dtype=torch.promote_types(x.dtype, residual.dtype))
    y_rows = rows(y)
    for part in _parts(x, fc1_weight.shape[0]):
        r = _linear(x[part], pw_weight, pw_bias)
        r = r.add_(residual[part]) if r.dtype == y.dtype else residual[part] + r
        branch = _branch(r.to(x.dtype), fc1_weight, fc1_bias, fc2_weight, fc2_bias, "gelu")
        torch.add(r, branch, out=y_rows[part])
    return y


@register_fake("pointwise_feed_forward")
def _fake_pointwise_feed_forward(x: Tensor, residual: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(residual.shape, dtype=torch.promote_types(x.dtype, residual.dtype))


def _branch(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
) -> Tensor:
    return _linear(_linear(x, fc1_weight, fc1_bias, activation), fc2_weight, fc2_bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "") -> Tensor:
    if serves(x, weight):
        return _product(x, weight, bias, activation)
    return reference.linear(x, weight, bias, activation=activation or None)


@torch.library.impl(_LIBRARY, "feed_forward_backward", "CPU")
@torch.no_grad()
def _feed_forward_backward(
    dy: Tensor,
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    activation: str,
    want_input: bool,
    want_weights: bool,
) -> tuple[Tensor, ...]:
    layers = fc1_weight, fc1_bias, fc2_weight
    # With fewer rows than hidden channels, walks over the weights are what takes the time.
    if want_weights and _splits(x) and math.prod(x.shape[:-1]) >= len(fc1_weight):
        gradient = rows(dy).to(x.dtype)
        found = bfloat16.feed_forward_backward(gradient, rows(x), *layers, activation, want_input)
        if found is not None:
            dx, *gradients = found
            return dx.view(x.shape if want_input else 0), *gradients
    dx = x.new_empty(x.shape if want_input else 0)
    dx_rows = dx.view(-1, x.shape[-1]) if want_input else dx
    sums: list[Tensor] = []
    dy, x = rows(dy).to(x.dtype), rows(x)
    fc1_columns, fc2_columns = fc1_weight.t(), fc2_weight.t()
    if not bfloat16.multiplies(x.dtype):  # oneDNN would transpose them anew for every part
        fc1_columns, fc2_columns = fc1_columns.contiguous(), fc2_columns.contiguous()
    for part in _parts(x, fc1_weight.shape[0]):
        hidden = _product(x[part], fc1_weight, fc1_bias)
        dz = _product(dy[part], fc2_columns, None)
        torch.ops.uniformer_kernels.activation_backward_(hidden, dz, activation == "quick_gelu")
        if want_weights:
            gradients = [*weight_gradient(dz, x[part]), *weight_gradient(dy[part], hidden)]
            if sums:
                torch._foreach_add_(tuple(sums), tuple(gradients))
            else:
                sums = gradients
        if want_input:
            dx_rows[part] = _product(dz, fc1_columns, None)
    if not sums:
        shapes = (fc1_weight.shape, fc1_weight.shape[:1], fc2_weight.shape, fc2_weight.shape[:1])
        sums = [x.new_zeros(shape if want_weights else 0) for shape in shapes]
    return dx, *(s.to(x.dtype) for s in sums)


def quick_gelu_(z: Tensor) -> Tensor:
    """In place."""
    return F.silu(z.mul_(QUICK), inplace=True).mul_(1 / QUICK)
