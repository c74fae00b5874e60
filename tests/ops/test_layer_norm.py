"""LayerNorm over the channels: sizes around a kernel's blocks, weights wider than the input."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from tests.contract import DTYPES, check, draw
from uniformer_kernels import BackendError, layer_norm, reference, use_backend
from uniformer_kernels.kernels import kernels


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {
        "x": draw(*shape, dtype=dtype),
        "weight": draw(shape[-1], dtype=dtype),
        "bias": draw(shape[-1], dtype=dtype),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(5,), (1, 3), (2, 3, 5, 64), (70, 56), (2, 7, 320), (3, 1023), (2, 4096)], ids=str
)
def test_layer_norm(shape, dtype, backend) -> None:
    given = inputs(*shape, dtype=dtype)
    check(layer_norm, reference.layer_norm, given, reduction=max(given["x"].shape))
    for chosen in (("x",), ("x", "weight")):
        some = {name: given[name] for name in chosen}
        check(layer_norm, reference.layer_norm, some, reduction=max(given["x"].shape))


@pytest.mark.parametrize("shape", [(50, 24), (9, 130)], ids=str)
def test_programs_with_several_blocks_of_rows(shape, backend, monkeypatch) -> None:
    """Three programs for many blocks of a row or two each; the last has rows too few."""
    if backend == "triton":
        module = import_module("uniformer_kernels.triton.layer_norm")
        monkeypatch.setattr(module, "_GROUPS", 3)
        with module.FORWARD.trying(tile=64), module.BACKWARD.trying(tile=64):
            check(layer_norm, reference.layer_norm, inputs(*shape), reduction=130)
    else:
        check(layer_norm, reference.layer_norm, inputs(*shape), reduction=130)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_may_be_float32(dtype, backend) -> None:
    """As autocast leaves them; the result keeps the dtype of ``x``, the gradients theirs."""
    given = inputs(2, 9, 24) | {"x": draw(2, 9, 24, dtype=dtype)}
    y = layer_norm(**{name: t.requires_grad_() for name, t in given.items()})
    assert y.dtype == dtype
    want = F.layer_norm(given["x"].float(), [24], given["weight"], given["bias"])
    torch.testing.assert_close(y.float(), want, rtol=1e-2, atol=1e-2)
    for t, grad in zip(given.values(), torch.autograd.grad(y.sum(), given.values()), strict=True):
        assert grad.dtype == t.dtype


@pytest.mark.parametrize("eps", [1e-6, 1e-1])
def test_eps(eps, backend) -> None:
    x = draw(3, 24) * 1e-3
    want = F.layer_norm(x.double(), [24], eps=eps)
    torch.testing.assert_close(layer_norm(x, eps=eps).double(), want, rtol=1e-4, atol=1e-5)


def test_large_means_do_not_cancel(backend) -> None:
    x = draw(3, 56) + 1000
    want = F.layer_norm(x.double(), [56])
    torch.testing.assert_close(layer_norm(x).double(), want, rtol=1e-3, atol=1e-3)


def test_nan_stays_in_its_row(backend) -> None:
    x = draw(7, 24)
    x[3, 5] = torch.nan
    assert layer_norm(x).isnan().all(1).nonzero().flatten().tolist() == [3]


def test_opcheck(backend) -> None:
    """The Triton kernels', as PyTorch's serve the other backends."""
    if backend == "triton":
        ops = kernels(backend)
        given = inputs(3, 24).values()
        torch.library.opcheck(ops.layer_norm.default, (*given, 1e-5))
        y, *statistics = ops.layer_norm(*given, 1e-5)
        for wanted in ((True, False, True), (False, True, False)):
            arguments = (draw(3, 24), *given, *statistics, *wanted)
            torch.library.opcheck(ops.layer_norm_backward.default, arguments)
        *_, again = ops.layer_norm_backward(draw(3, 24), *given, *statistics, True, True, True)
        torch.testing.assert_close(again, y)


def test_too_many_channels_for_a_program() -> None:
    with (
        use_backend("triton"),
        pytest.raises(BackendError, match="C is 4097, expected at most 4096"),
    ):
        layer_norm(draw(2, 4097))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": ()}, r"x: expected \[\.\.\., C\], got"),
        ({"weight": (7,)}, r"weight: expected \[8\], got \[7\]"),
        ({"bias": (1, 8)}, r"bias: expected \[8\], got \[1, 8\]"),
    ],
    ids=str,
)
def test_refuses_sizes_that_do_not_fit(shapes, message, backend) -> None:
    fitting = {"x": (2, 3, 8), "weight": (8,), "bias": (8,)}
    with pytest.raises(ValueError, match=f"layer_norm: {message}"):
        layer_norm(**{name: draw(*shape) for name, shape in (fitting | shapes).items()})


def test_refuses_narrow_parameters() -> None:
    with pytest.raises(TypeError, match=r"layer_norm: weight: expected torch.float32 like x"):
        layer_norm(draw(2, 8), draw(8, dtype=torch.float16))
