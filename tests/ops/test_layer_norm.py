"""LayerNorm over the channels: sizes around a kernel's blocks, weights wider than the input."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from tests.contract import DTYPES, check, draw, evaluate
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
    "shape",
    [
        *[(5,), (6, 1), (1, 3), (9, 15), (5, 16), (0, 17), (6, 17), (2, 3, 5, 64), (70, 56)],
        *[(2, 7, 320), (3, 1023), (2, 4096), (5, 4097), (301, 20)],
    ],
    ids=str,
)
def test_layer_norm(shape, dtype, backend) -> None:
    if backend == "triton" and shape[-1] > 4096:
        pytest.skip("too many channels for a program")
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
    for t, grad in zip(given.values(), torch.autograd.grad(y.sum(), given.values()), strict=True):
        assert grad.dtype == t.dtype
    check(layer_norm, reference.layer_norm, given, reduction=24)


def test_one_parameter_may_be_float32(backend) -> None:
    if backend == "reference":
        pytest.skip("takes both or none")
    given = inputs(5, 24, dtype=torch.bfloat16) | {"bias": draw(24)}
    y = layer_norm(**{name: t.requires_grad_() for name, t in given.items()})
    want = F.layer_norm(given["x"].float(), [24], given["weight"].float(), given["bias"])
    torch.testing.assert_close(y.float(), want, rtol=1e-2, atol=1e-2)
    gradients = torch.autograd.grad(y.sum(), given.values())
    assert [t.dtype for t in gradients] == [t.dtype for t in given.values()]


@pytest.mark.parametrize("eps", [1e-6, 1e-1])
def test_eps(eps, backend) -> None:
    x = draw(3, 24) * 1e-3
    want = F.layer_norm(x.double(), [24], eps=eps)
    torch.testing.assert_close(layer_norm(x, eps=eps).double(), want, rtol=1e-4, atol=1e-5)


def test_large_means_do_not_cancel(backend) -> None:
    x = draw(3, 56) + 1000
    want = F.layer_norm(x.double(), [56])
    torch.testing.assert_close(layer_norm(x).double(), want, rtol=1e-3, atol=1e-3)


def test_an_outlier_takes_nothing_from_the_others(backend) -> None:
    """Wherever it stands; squares of differences from it, not from the mean, would."""
    x = draw(4, 320) / 8
    x[torch.arange(4), torch.tensor([0, 17, 160, 319])] = 1000
    check(layer_norm, reference.layer_norm, {"x": x}, reduction=320)


@pytest.mark.parametrize("value", [0.0, 3.0, -1000.0])
def test_rows_of_one_number(value, backend) -> None:
    if backend == "reference":
        pytest.skip("its means are not exact")
    x = torch.full((5, 64), value, requires_grad=True)
    y = layer_norm(x)
    assert not y.any()
    (dx,) = torch.autograd.grad(y, x, dy := draw(5, 64))
    want = (dy - dy.mean(1, keepdim=True)) * 1e-5**-0.5
    torch.testing.assert_close(dx, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_in_its_row(value, backend) -> None:
    """Rows are normalised some at a time, and here the first and the last are other ones' only."""
    x = draw(7, 24)
    x[[3, 6], 5] = value
    x.requires_grad_()
    y = layer_norm(x)
    (dx,) = torch.autograd.grad(y, x, draw(7, 24))
    for t in (y, dx):
        assert t.isnan().all(1).tolist() == [row in (3, 6) for row in range(7)]
        assert t[[0, 1, 2, 4, 5]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_backward_gives_the_result_again(dtype, backend) -> None:
    """Bit for bit where one function rounds both, on a CPU."""
    if backend == "reference":
        pytest.skip("has no kernels")
    ops, given = kernels(backend), inputs(139, 35, dtype=dtype).values()
    y, *statistics = ops.layer_norm(*given, 1e-5)
    dy = draw(139, 35, dtype=dtype)
    *_, again = ops.layer_norm_backward(dy, *given, *statistics, True, True, True)
    if backend == "cpu":
        assert torch.equal(again, y)
    torch.testing.assert_close(again, y)
    alone = [
        *ops.layer_norm_backward(dy, *given, *statistics, True, False, False)[:1],
        *ops.layer_norm_backward(dy, *given, *statistics, False, True, False)[1:3],
        ops.layer_norm_backward(dy, *given, *statistics, False, False, True)[3],
    ]
    together = ops.layer_norm_backward(dy, *given, *statistics, True, True, True)
    for t, other in zip(alone, together, strict=True):
        assert torch.equal(t, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_number_of_threads_gives_the_same(dtype) -> None:
    given = inputs(997, 67, dtype=dtype)  # enough rows for three
    dy, found = draw(997, 67, dtype=dtype), []
    with use_backend("cpu"):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(list(evaluate(layer_norm, given, upstream=lambda _: dy).values()))
    for results in found[1:]:
        assert all(map(torch.equal, results, found[0]))


def test_float64_is_differentiable_twice_on_a_cpu() -> None:
    """By PyTorch's, as kernels are of what is narrower; and those say that they are not."""
    with use_backend("cpu"):
        given = [t.double().requires_grad_() for t in inputs(3, 5).values()]
        assert torch.autograd.gradgradcheck(layer_norm, given)
        x = draw(3, 5).requires_grad_()
        (dx,) = torch.autograd.grad(layer_norm(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="kernels are differentiable once"):
            torch.autograd.grad(dx.square().sum(), x)


def test_opcheck(backend) -> None:
    if backend != "reference":
        ops = kernels(backend)
        given = inputs(3, 24).values()
        torch.library.opcheck(ops.layer_norm.default, (*given, 1e-5))
        _, *statistics = ops.layer_norm(*given, 1e-5)
        for wanted in ((True, False, True), (False, True, False)):
            arguments = (draw(3, 24), *given, *statistics, *wanted)
            torch.library.opcheck(ops.layer_norm_backward.default, arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"x": torch.zeros(2, 8).double(), "dy": torch.zeros(2, 8).double()},
            "x of float32, bfloat16 or float16",
        ),
        ({"weight": torch.zeros(7)}, r"weight and bias \[C\] of x's dtype or float32"),
        ({"bias": torch.zeros(8).half()}, r"weight and bias \[C\] of x's dtype or float32"),
        ({"dy": torch.zeros(3, 8)}, "dy of x's shape and dtype"),
        ({"mean": torch.zeros(3)}, "mean and rstd, contiguous, a float32 for every row"),
        ({"rstd": torch.zeros(2).double()}, "mean and rstd, contiguous, a float32 for every row"),
    ],
    ids=["x", "weight", "bias", "dy", "mean", "rstd"],
)
def test_the_kernels_read_nothing_outside_a_tensor(changed, message) -> None:
    fitting = inputs(2, 8) | {"mean": draw(2), "rstd": draw(2)}
    given = {"dy": draw(2, 8), **fitting} | changed
    with pytest.raises(RuntimeError, match=message):
        kernels("cpu").layer_norm_backward(*given.values(), True, True, True)


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
