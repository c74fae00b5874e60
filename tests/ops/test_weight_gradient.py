"""Compiled parts of linear layers' gradients, which have no public operators of their own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from tests.contract import draw, within

weight_gradient = torch.ops.uniformer_kernels.weight_gradient
activation_backward_ = torch.ops.uniformer_kernels.activation_backward_

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [
        (1, 1, 1),
        (7, 5, 3),
        (65, 17, 33),
        (130, 250, 20),  # two blocks of outputs
        (40, 12, 300),  # several blocks of inputs, the last one narrow
        (2100, 64, 56),  # several parts
        (600, 500, 130),
    ],
)
def test_values(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    """Sums are of float32 whatever the dtype."""
    dy, x = draw(rows, outputs, dtype=dtype), draw(rows, inputs, dtype=dtype)
    exact = dy.double().t() @ x.double(), dy.double().sum(0)
    plain = dy.float().t() @ x.float(), dy.float().sum(0)
    for name, got, near, want in zip("wb", weight_gradient(dy, x), plain, exact, strict=True):
        within(name, got, [near], want, reduction=rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_apart(dtype: torch.dtype) -> None:
    dy, x = draw(50, 40, dtype=dtype)[:, 3:25], draw(100, 30, dtype=dtype)[::2, :21]
    dw, db = weight_gradient(dy, x)
    torch.testing.assert_close(dw, dy.float().t() @ x.float())
    torch.testing.assert_close(db, dy.float().sum(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_infinities_are_pytorchs(value: float, dtype: torch.dtype) -> None:
    dy, x = draw(150, 40, dtype=dtype), draw(150, 70, dtype=dtype)
    for bad in (x, dy):
        kept = bad[77, 7].clone()
        bad[77, 7] = value
        dw, _ = weight_gradient(dy, x)
        torch.testing.assert_close(dw, dy.float().t() @ x.float(), equal_nan=True)
        bad[77, 7] = kept


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty(rows: int, outputs: int, inputs: int) -> None:
    dw, db = weight_gradient(draw(rows, outputs), draw(rows, inputs))
    assert dw.shape == (outputs, inputs)
    assert not dw.any()
    assert rows or not db.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_for_any_number_of_threads(dtype: torch.dtype) -> None:
    dy, x = draw(5000, 70, dtype=dtype), draw(5000, 90, dtype=dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(weight_gradient(dy, x))
    for dw, db in results[1:]:
        assert torch.equal(dw, results[0][0])
        assert torch.equal(db, results[0][1])


def test_refuses_what_it_cannot_read() -> None:
    with pytest.raises(RuntimeError, match="adjacent channels"):
        weight_gradient(draw(4, 5).t(), draw(5, 3))
    with pytest.raises(RuntimeError, match="float32"):
        weight_gradient(draw(4, 5).double(), draw(4, 3).double())
    with pytest.raises(RuntimeError, match=r"dy \[N, C_out\]"):
        weight_gradient(draw(4, 5), draw(3, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    opcheck(weight_gradient, (draw(9, 5, dtype=dtype), draw(9, 3, dtype=dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("count", [1, 15, 16, 40000])
def test_activation_backward(count: int, quick: bool, dtype: torch.dtype) -> None:
    """The activation and its gradient, also far from zero, where nothing may overflow."""

    def both(z: torch.Tensor, dhidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = z.detach().requires_grad_()
        hidden = z * torch.sigmoid(1.702 * z) if quick else F.gelu(z)
        return hidden.detach(), torch.autograd.grad(hidden, z, dhidden)[0]

    z, dhidden = 4 * draw(count, dtype=dtype), draw(count, dtype=dtype)
    if count == 15:
        z[:3] = torch.tensor([-1e4, 1e4, -1e30])
    exact, plain = both(z.double(), dhidden.double()), both(z, dhidden)
    activation_backward_(z, dhidden, quick)
    for name, got, near, want in zip("hz", (z, dhidden), plain, exact, strict=True):
        within(name, got, [near], want, reduction=1)


def test_activation_backward_keeps_nan_and_infinity() -> None:
    for dtype in DTYPES:
        for quick in (False, True):
            z = torch.tensor([torch.nan, torch.inf, 0.0, 100.0], dtype=dtype)
            dhidden = torch.ones_like(z)
            activation_backward_(z, dhidden, quick)
            assert z[0].isnan()
            assert dhidden[0].isnan()
            assert z[1:].tolist() == [torch.inf, 0.0, 100.0]
            assert dhidden[2:].tolist() == [0.5, 1.0]


def test_activation_backward_refuses_what_does_not_match() -> None:
    with pytest.raises(RuntimeError, match="of one size"):
        activation_backward_(draw(3), draw(4), False)
    with pytest.raises(RuntimeError, match="contiguous"):
        activation_backward_(draw(3, 2).t(), draw(2, 3), False)
