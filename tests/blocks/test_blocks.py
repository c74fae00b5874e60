"""Every block against the same block written out on modules, in float64, with all gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from uniformer_kernels import blocks

from . import plain

GRIDS = {2: (5, 6), 3: (3, 4, 5)}


def channels_last(x: Tensor) -> Tensor:
    """``[B, C, (T,) H, W]`` as a contiguous ``[B, T, H, W, C]``."""
    return (x if x.dim() == 5 else x.unsqueeze(2)).movedim(1, -1).contiguous()


def draw(dim: int, ndim: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, dim, *GRIDS[ndim], dtype=torch.float64)


def same(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    modules: nn.ModuleDict,
    x: Tensor,
    *gammas: Tensor,
) -> None:
    """Equal output, input gradient, parameter gradients and buffers.

    ``ours(x, parameters, *gammas)`` is channels-last, ``theirs(x, modules, *gammas)`` is not.
    """
    results = []
    for is_ours, model in ((True, copy.deepcopy(modules)), (False, modules)):
        leaves = [t.clone().requires_grad_() for t in (x, *gammas)]
        if is_ours:
            y = ours(channels_last(leaves[0]), plain.parameters(model), *leaves[1:])
        else:
            y = channels_last(theirs(leaves[0], model, *leaves[1:]))
        cotangent = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape).sin()
        (y * cotangent).sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        gradients |= {f"leaf {i}": leaf.grad for i, leaf in enumerate(leaves)}
        results.append({"output": y.detach()} | gradients | dict(model.named_buffers()))
    got, expected = results
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert value is not None, name
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-10, msg=partial(_say, name))


def _say(name: str, message: str) -> str:
    return f"{name}: {message}"


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer_scale", [True, False])
def test_local_block(ndim: int, training: bool, layer_scale: bool) -> None:
    modules = plain.local_modules(6, ndim).train(training)
    gammas = list(torch.randn(2, 6, *[1] * ndim, dtype=torch.float64)) if layer_scale else []

    def ours(x: Tensor, parameters: dict, *gammas: Tensor) -> Tensor:
        scales = dict(zip(("gamma_1", "gamma_2"), gammas, strict=False))
        return blocks.local_block(x, **parameters, **scales)

    same(ours, plain.local_block, modules, draw(6, ndim), *gammas)


@pytest.mark.parametrize(
    "norm",
    [
        {"momentum": None},
        {"momentum": 0.3, "eps": 1e-2},
        {"affine": False},
        {"track_running_stats": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_local_block_with_any_batch_norm(norm: dict, training: bool) -> None:
    modules = plain.local_modules(4, 3, **norm).train(training)
    same(lambda x, p: blocks.local_block(x, **p), plain.local_block, modules, draw(4, 3))


def test_local_block_with_a_frozen_batch_norm_in_training() -> None:
    modules = plain.local_modules(4, 3).train()
    modules["norm1"].eval().requires_grad_(False)
    same(lambda x, p: blocks.local_block(x, **p), plain.local_block, modules, draw(4, 3))


def test_layers_without_bias() -> None:
    modules = plain.local_modules(4, 3).eval()
    for name in ("dpe", "pw1", "dw", "pw2", "fc1", "fc2"):
        modules[name].register_parameter("bias", None)
    gammas = torch.randn(2, 4, 1, 1, 1, dtype=torch.float64)

    def ours(x: Tensor, parameters: dict, gamma_1: Tensor, gamma_2: Tensor) -> Tensor:
        return blocks.local_block(x, **parameters, gamma_1=gamma_1, gamma_2=gamma_2)

    same(ours, plain.local_block, modules, draw(4, 3), *gammas)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("layer_scale", [True, False])
def test_global_block(ndim: int, layer_scale: bool) -> None:
    gammas = list(torch.randn(2, 6, dtype=torch.float64)) if layer_scale else []

    def ours(x: Tensor, parameters: dict, *gammas: Tensor) -> Tensor:
        scales = dict(zip(("gamma_1", "gamma_2"), gammas, strict=False))
        return blocks.global_block(x, **parameters, num_heads=3, **scales)

    def theirs(x: Tensor, modules: nn.ModuleDict, *gammas: Tensor) -> Tensor:
        return plain.global_block(x, modules, 3, *gammas)

    same(ours, theirs, plain.global_modules(6, ndim), draw(6, ndim), *gammas)


@pytest.mark.parametrize("window_size", [2, 3, 4, 8])
def test_window_block(window_size: int) -> None:
    same(
        lambda x, p: blocks.window_block(x, **p, num_heads=3, window_size=window_size),
        lambda x, m: plain.window_block(x, m, 3, window_size),
        plain.global_modules(6, 2),
        draw(6, 2),
    )


def test_divided_block() -> None:
    same(
        lambda x, p: blocks.divided_block(x, **p, num_heads=3),
        lambda x, m: plain.divided_block(x, m, 3),
        plain.divided_modules(6),
        draw(6, 3),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (1, 1)])
def test_conv_stem(training: bool, grid: tuple[int, int]) -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.GELU(),
        nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6),
    )  # fmt: skip
    plain.randomise(layers).train(training)
    x = torch.randn(3, 3, *grid, dtype=torch.float64, requires_grad=True)
    ours, theirs = copy.deepcopy(layers), layers
    pairs = [
        (blocks.Affine.of(conv), blocks.BatchNorm.of(norm))
        for conv, norm in ((ours[0], ours[1]), (ours[3], ours[4]))
    ]
    got, expected = blocks.conv_stem(channels_last(x), pairs), channels_last(theirs(x))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    dx = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, expected)]
    torch.testing.assert_close(*dx, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "grid"),
    [
        ((4, 4), (4, 4), (0, 0), (9, 11)),
        ((3, 4, 4), (2, 4, 4), (1, 0, 0), (5, 8, 9)),
        ((3, 2, 2), (1, 2, 2), (1, 0, 0), (3, 4, 5)),
    ],
)
def test_patch_stem(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    grid: tuple[int, ...],
) -> None:
    conv = plain.CONV[len(kernel)](3, 6, kernel, stride, padding)
    modules = plain.randomise(nn.ModuleDict({"proj": conv, "norm": nn.LayerNorm(6, eps=1e-2)}))

    def ours(x: Tensor, parameters: dict) -> Tensor:
        return blocks.patch_stem(x, **parameters, stride=stride, padding=padding)

    def theirs(x: Tensor, modules: nn.ModuleDict) -> Tensor:
        return modules["norm"](modules["proj"](x).movedim(1, -1)).movedim(-1, 1)

    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    same(ours, theirs, modules, x)
