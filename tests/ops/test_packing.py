"""Weights packed ahead: the same from them, and from the weights where they do not serve."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.contract import draw
from uniformer_kernels import (
    bfloat16,
    depthwise_feed_forward,
    depthwise_linear,
    feed_forward,
    linear,
    ops,
)

SIZES = [(40, 7, 5), (70, 64, 100), (33, 96, 32)]  # rows, C_in, C_out


def _packed(weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    packed = ops.pack_linear(weight, bias)
    wanted = backend != "reference" and bfloat16.multiplies(weight.dtype)
    assert (packed is not None) == wanted
    if packed is None or backend == "triton":
        pytest.skip(f"{backend} multiplies by {weight.dtype} as it lies")
    return packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "C_in", "C_out"), SIZES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear(has_bias, rows, C_in, C_out, dtype, backend) -> None:
    x, weight = draw(2, rows, C_in, dtype=dtype), draw(C_out, C_in, dtype=dtype)
    bias = draw(C_out, dtype=dtype) if has_bias else None
    options = {"activation": "gelu", "residual": draw(2, rows, C_out, dtype=dtype)}
    options |= {"norm_weight": draw(C_in, dtype=dtype), "norm_bias": draw(C_in, dtype=dtype)}
    packed = _packed(weight, bias, backend)
    want = linear(x, weight, bias, **options)
    assert torch.equal(linear(x, weight, bias, **options, packed=packed), want)
    # It is what is multiplied by,
    nothing = torch.zeros_like(weight), None
    assert torch.equal(linear(x, *nothing, **options, packed=packed), want)
    # unless a gradient is asked for.
    leaf = weight.clone().requires_grad_()
    other = linear(x, leaf, bias, **options, packed=ops.pack_linear(*nothing))
    assert torch.equal(other, linear(x, leaf, bias, **options))
    other.sum().backward()
    assert leaf.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_feed_forward(which, dtype, backend) -> None:
    x, residual = draw(3, 17, 24, dtype=dtype), draw(3, 17, 24, dtype=dtype)
    layers = [(draw(40, 24, dtype=dtype), draw(40, dtype=dtype)), (draw(24, 40, dtype=dtype), None)]
    norm = {"norm_weight": draw(24, dtype=dtype), "norm_bias": draw(24, dtype=dtype)}
    want = feed_forward(x, *layers[0], *layers[1], residual=residual, **norm)
    packed = [_packed(*layers[i], backend) if i in which else None for i in range(2)]
    for i in which:
        layers[i] = torch.zeros_like(layers[i][0]), None
    got = feed_forward(x, *layers[0], *layers[1], residual=residual, packed=packed, **norm)
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("C", [24, 64])
def test_local_block(C, dtype, backend) -> None:
    """Its halves; more rows than a task has, and a last task with few."""
    x, y = draw(1, 3, 14, 13, C, dtype=dtype), draw(1, 3, 14, 13, C, dtype=dtype)
    convolution = draw(C, 1, 3, 3, 3, dtype=dtype) / 5, draw(C, dtype=dtype)
    sizes = [(C, C), (2 * C + 8, C), (C, 2 * C + 8)]
    layers = [(draw(*size, dtype=dtype) / 8, draw(size[0], dtype=dtype)) for size in sizes]
    packed = [_packed(*layer, backend) for layer in layers]
    nothing = [(torch.zeros_like(weight), None) for weight, _ in layers]

    want = depthwise_linear(x, *convolution, *layers[0])
    got = depthwise_linear(x, *convolution, *nothing[0], packed=packed[0])
    assert all(map(torch.equal, got, want))

    def second(residual: Tensor, layers: list, packed: list) -> Tensor:
        flat = [t for layer in layers for t in layer]
        return depthwise_feed_forward(x, residual, *convolution, *flat, packed=packed)

    want = second(y, layers, [None] * 3)
    assert torch.equal(second(y, nothing, packed), want)
    assert torch.equal(second(y, [nothing[0], *layers[1:]], [packed[0], None, None]), want)
    wide = second(y.float(), nothing, packed)  # autocast's: r is not of one dtype with x
    torch.testing.assert_close(wide, second(y.float(), layers, [None] * 3))
    torch.testing.assert_close(wide.to(dtype), want, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_for_something_else(dtype, backend) -> None:
    """For another processor, shape or dtype: what is given is not read, the weight is."""
    x, weight, bias = draw(40, 24, dtype=dtype), draw(56, 24, dtype=dtype), draw(56, dtype=dtype)
    packed, want = _packed(weight, bias, backend), linear(x, weight, bias)
    elsewhere = packed.clone()
    elsewhere[0] += 1  # what it says of the processor
    half = torch.bfloat16 if dtype == torch.float32 else torch.float16
    others = [elsewhere, packed[:-4], packed.view(torch.int8), packed[:0]]
    others += [ops.pack_linear(weight[:24], bias[:24]), ops.pack_linear(weight.to(half))]
    for other in others:
        assert torch.equal(linear(x, weight, bias, packed=other), want)


def test_what_does_not_fit() -> None:
    assert ops.pack_linear(draw(4, 3, dtype=torch.float64)) is None
    with pytest.raises(ValueError, match=r"pack_linear: weight: expected \[C_out, C_in\]"):
        ops.pack_linear(draw(4))
    with pytest.raises(ValueError, match="pack_linear: bias: expected"):
        ops.pack_linear(draw(4, 3), draw(3))
    with pytest.raises(TypeError, match=r"bias: expected torch\.float32 like weight"):
        ops.pack_linear(draw(4, 3, dtype=torch.float32), draw(4, dtype=torch.bfloat16))
