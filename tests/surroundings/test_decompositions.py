"""Every kernel of a forward pass has a meaning in plain PyTorch, with the kernel's own results."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import uniformer_kernels as uk
from tests.contract import draw
from uniformer_kernels.kernels import KERNELS, kernels


def is_backward(name: str) -> bool:
    return "backward" in name or name == "weight_gradient"


def test_complete() -> None:
    """Kernels are found by their schemas, so that a new one cannot be forgotten."""
    names = torch._C._dispatch_get_all_op_names()
    ours = (name.split("::") for name in names if name.startswith("uniformer_kernels"))
    found = {getattr(getattr(torch.ops, where), name).default for where, name in ours}
    takes_tensors = {k for k in found if k._schema.arguments}
    names = {k: k._schema.name.split("::")[1] for k in takes_tensors}
    # No forward packs: what is packed is given.
    forward = {k for k, name in names.items() if not is_backward(name) and name != "bfloat16_pack"}
    table = uk.decompositions()
    assert forward == {kernel for kernel in table if "uniformer" in str(kernel)}


_has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key

_ARGUMENTS: dict[str, Any] = {
    "convolution": lambda: (
        draw(2, 3, 8, 8, 3),
        draw(5, 3, 1, 2, 2),
        draw(5),
        [1, 2, 2],
        [0, 0, 0],
    ),
    "depthwise_conv3d": lambda: (draw(2, 3, 5, 6, 4), draw(4, 1, 3, 3, 3), draw(4), True),
    "depthwise_conv3d_tma": lambda: (draw(2, 3, 5, 6, 4), draw(4, 1, 3, 3, 3), draw(4), False),
    "depthwise_conv3d_tma_with_moments": lambda: (
        *(draw(2, 3, 5, 6, 4), draw(4, 1, 3, 3, 3), None, True, draw(4)),
    ),
    "depthwise_conv3d_toeplitz": lambda: (draw(2, 3, 5, 6, 4), draw(4, 1, 5, 5, 5), None, True),
    "depthwise_conv3d_toeplitz_with_moments": lambda: (
        *(draw(2, 3, 5, 6, 4), draw(4, 1, 5, 5, 5), draw(4), True, None),
    ),
    "depthwise_conv3d_with_moments": lambda: (
        draw(2, 3, 5, 6, 4),
        draw(4, 1, 3, 3, 3),
        None,
        False,
        draw(4),
    ),
    "depthwise_feed_forward": lambda: (
        *(draw(1, 2, 4, 4, 16), draw(1, 2, 4, 4, 16), draw(16, 1, 3, 3, 3), None),
        *(draw(16, 16), draw(16), draw(32, 16), draw(32), draw(16, 32), draw(16)),
    ),
    "depthwise_linear": lambda: (
        *(draw(1, 2, 4, 4, 16), draw(16, 1, 3, 3, 3), None, draw(8, 16), draw(8)),
    ),
    "feed_forward": lambda: (
        *(draw(7, 16), draw(32, 16), draw(32), draw(16, 32), None, "quick_gelu", draw(7, 16)),
    ),
    "fold_batch_norm": lambda: (
        *(draw(5, 4), draw(5), draw(4), draw(2, 4) + torch.tensor([[0.0], [90.0]])),
        *(draw(4), draw(4), 9, 1e-5),
    ),
    "joint_attention": lambda: (draw(2, 9, 48), 2, 0.3),
    "joint_attention_with_score": lambda: (draw(2, 9, 48), 2, 1, 0.3),
    "layer_norm": lambda: (draw(3, 5, 12), draw(12), draw(12), 1e-5),
    "linear": lambda: (draw(3, 5, 16), draw(8, 16), draw(8), "gelu", draw(3, 5, 8), True),
    "moments": lambda: (draw(7, 5), draw(5)),
    "normalised_pooling": lambda: (draw(2, 3, 16), draw(2, 9, 16), 1e-5),
    "patch_embed": lambda: (
        *(draw(2, 3, 8, 8, 3), draw(5, 3, 1, 2, 2), draw(5), draw(5), draw(5)),
        *([1, 2, 2], [0, 0, 0], 1e-5, True),
    ),
    "pointwise_feed_forward": lambda: (
        *(draw(1, 2, 4, 4, 16), draw(1, 2, 4, 4, 16)),
        *(draw(16, 16), draw(16), draw(32, 16), draw(32), draw(16, 32), draw(16)),
    ),
    "product": lambda: (draw(7, 5), draw(3, 5), draw(3), "gelu", draw(7, 3)),
    "token_recover": lambda: (
        *(draw(2, 6, 4), torch.tensor([[0, 3], [1, 5]]), draw(2, 2, 4), draw(2, 1, 4)),
    ),
    "token_recover_with_importance": lambda: (
        *(draw(2, 6, 4), torch.tensor([[0, 3], [1, 5]]), draw(2, 2, 4), draw(2, 1, 4)),
        *(draw(2, 6), draw(2, 4), 0.3),
    ),
    "token_shrink": lambda: (draw(2, 6, 4), draw(2, 6).abs(), 3, draw(2, 1, 4)),
    "window_attention": lambda: (draw(2, 20, 48), draw(48), 2, 5, 3, 0.3),
}


@pytest.mark.parametrize("name", _ARGUMENTS)
def test_same_results(name: str, backend: str) -> None:
    """As the compiled kernels give, and as Triton's in its interpreter."""
    if backend == "reference" or not hasattr(kernels(backend), name):
        pytest.skip(f"{backend} has no {name}")
    if backend == "cpu" and not _has_kernel(f"uniformer_kernels::{name}", "CPU"):
        pytest.skip(f"only GPUs have {name}")
    kernel = getattr(kernels(backend), name).default
    arguments = _ARGUMENTS[name]()
    want, got = kernel(*arguments), uk.decompositions()[kernel](*arguments)
    for a, b in zip(_several(got), _several(want), strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def _several(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


@pytest.mark.parametrize("name", _ARGUMENTS)
def test_shapes_as_declared(name: str) -> None:
    """Also of kernels this machine cannot run: theirs are known for tensors without data."""
    arguments = [a.to("meta") if isinstance(a, Tensor) else a for a in _ARGUMENTS[name]()]
    for kernel in KERNELS[name]:
        want, got = kernel(*arguments), uk.decompositions()[kernel](*arguments)
        for a, b in zip(_several(got), _several(want), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert math.prod(a.shape) == 0 or a.stride() == b.stride()
