"""Depthwise convolutions on both of a GPU's backends: models' shapes, edges, layouts, moments.

``products`` and ``tma`` are ``cuda`` as if its matrix products, or frames staged by TMA, had been
measured to be faster everywhere.
"""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import uniformer_kernels as uk
from tests.contract import check, draw, evaluate
from uniformer_kernels import cuda, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
CALLS = [  # shape, kernel
    ((2, 8, 28, 28, 64), (5, 5, 5)),
    ((2, 8, 20, 20, 56), (5, 5, 5)),
    ((2, 8, 7, 7, 512), (3, 3, 3)),
    ((3, 8, 5, 5, 448), (3, 3, 3)),
    ((2, 8, 14, 14, 768), (3, 1, 1)),
    ((2, 1, 28, 28, 128), (1, 5, 5)),
    ((1, 13, 9, 17, 33), (3, 3, 3)),  # odd everything
    ((1, 2, 5, 6, 24), (7, 5, 5)),
    ((1, 2, 5, 6, 17), (3, 5, 7)),
]


@pytest.fixture(autouse=True, params=["cuda", "products", "tma", "triton"])
def path(request, monkeypatch):
    backend = "triton" if request.param == "triton" else "cuda"
    if backend == "cuda" and (reason := cuda.declines(torch.empty(0, device="cuda"))):
        pytest.skip(reason)
    if request.param == "products":
        if request.node.callspec.params.get("dtype") == torch.float32:
            pytest.skip("has none in float32")
        monkeypatch.setattr(cuda, "_is_faster", lambda _, row, __: row.startswith(cuda.TOEPLITZ))
    if request.param == "tma":
        if not cuda.has_tma(torch.device("cuda")):
            pytest.skip("has no TMA")
        monkeypatch.setattr(cuda, "_is_faster", lambda _, row, __: row.startswith(cuda.TMA))
    with torch.backends.cudnn.flags(allow_tf32=False), uk.use_backend(backend):
        yield request.param


def inputs_of(shape: tuple[int, ...], kernel: tuple[int, ...], dtype: torch.dtype):
    C = shape[-1]
    x, weight, bias = draw(*shape, dtype=dtype), draw(C, 1, *kernel, dtype=dtype), draw(C)
    return {"x": x.cuda(), "weight": weight.cuda(), "bias": bias.to(dtype).cuda()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "kernel"), CALLS, ids=str)
def test_values_and_gradients(shape, kernel, dtype) -> None:
    check(
        partial(uk.depthwise_conv3d, residual=True),
        partial(reference.depthwise_conv3d, residual=True),
        inputs_of(shape, kernel, dtype),
        reduction=max(torch.Size(shape[:-1]).numel(), torch.Size(kernel).numel()),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "kernel"), CALLS, ids=str)
def test_moments(shape, kernel, dtype) -> None:
    inputs, shift = inputs_of(shape, kernel, dtype), draw(shape[-1]).cuda()
    y, moments = uk.depthwise_conv3d_with_moments(**inputs, shift=shift)
    assert torch.equal(y, uk.depthwise_conv3d(**inputs))
    want = reference.moments(y.double(), shift=shift.double())
    scale = want.abs().max().item()
    torch.testing.assert_close(moments.double(), want, rtol=1e-5, atol=1e-6 * scale)


def part(t: Tensor) -> Tensor:
    room = torch.full((*t.shape[:-1], t.shape[-1] + 5), float("nan"), dtype=t.dtype, device="cuda")
    return room[..., 3:-2].copy_(t)


any_layout = pytest.mark.parametrize(
    "layout",
    [
        lambda t: t.movedim(-1, 1).contiguous().movedim(1, -1),
        lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
        part,
    ],
    ids=["channels first", "axes swapped", "part of more channels"],
)


@any_layout
def test_values_in_any_layout(layout) -> None:
    inputs = inputs_of((2, 4, 9, 10, 64), (5, 5, 5), torch.bfloat16)
    check(
        uk.depthwise_conv3d,
        reference.depthwise_conv3d,
        inputs | {"x": layout(inputs["x"])},
        reduction=720,
        upstream=lambda y: layout(torch.randn_like(y)),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "kernel"), CALLS[:6], ids=str)
def test_tma_stages_the_models_frames(shape, kernel, dtype, path) -> None:
    """In every kernel of the convolution and its gradients, and the sums are the same."""
    if path != "tma":
        pytest.skip("has another kernel")
    inputs, dy = inputs_of(shape, kernel, dtype), draw(*shape, dtype=dtype)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        got = evaluate(uk.depthwise_conv3d, inputs, upstream=lambda _: dy)
    names = [event.name for event in trace.events() if "uk::cuda::" in event.name]
    staged = [name for name in names if re.search(r"(forward|weight_gradient)<.*true>", name)]
    assert len(staged) == 3, names
    x, weight, bias = inputs.values()
    ops = torch.ops.uniformer_kernels
    y = ops.depthwise_conv3d(x, weight, bias, False)
    dx, dw, db = ops.depthwise_conv3d_backward(dy.cuda(), x, weight, False, True, True)
    for name, want in {"output": y, "x": dx, "weight": dw, "bias": db}.items():
        assert torch.equal(got[name], want), name


@any_layout
def test_same_bits_in_any_layout(layout, path) -> None:
    if path not in ("cuda", "tma"):
        pytest.skip("has another kernel for it")
    inputs = inputs_of((2, 4, 9, 10, 64), (5, 5, 5), torch.bfloat16)
    dy = draw(2, 4, 9, 10, 64)
    want = evaluate(uk.depthwise_conv3d, inputs, upstream=lambda _: dy)
    got = evaluate(
        uk.depthwise_conv3d,
        inputs | {"x": layout(inputs["x"])},
        upstream=lambda _: layout(dy.cuda()),
    )
    for name in want:
        assert torch.equal(got[name], want[name]), name


def test_bitwise_repeatable() -> None:
    inputs = inputs_of((4, 8, 28, 28, 128), (5, 5, 5), torch.bfloat16)
    dy = draw(4, 8, 28, 28, 128)
    first = evaluate(uk.depthwise_conv3d, inputs, upstream=lambda _: dy)
    for _ in range(10):
        again = evaluate(uk.depthwise_conv3d, inputs, upstream=lambda _: dy)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_on_the_second_gpu() -> None:
    """Which is not the current device."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    inputs = inputs_of((1, 2, 5, 6, 8), (3, 3, 3), torch.float32)
    there = {name: t.to("cuda:1") for name, t in inputs.items()}
    assert torch.equal(uk.depthwise_conv3d(**there).cpu(), uk.depthwise_conv3d(**inputs).cpu())
    assert torch.cuda.current_device() == 0
