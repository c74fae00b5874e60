"""The compiled weight gradient of linear layers, which has no public operator of its own."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from tests.contract import draw, within

weight_gradient = torch.ops.uniformer_kernels.weight_gradient


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
def test_values(rows: int, outputs: int, inputs: int) -> None:
    dy, x = draw(rows, outputs), draw(rows, inputs)
    exact = dy.double().t() @ x.double(), dy.double().sum(0)
    plain = dy.t() @ x, dy.sum(0)
    for name, got, near, want in zip("wb", weight_gradient(dy, x), plain, exact, strict=True):
        within(name, got, [near], want, reduction=rows)


def test_rows_apart() -> None:
    dy, x = draw(50, 40)[:, 3:25], draw(100, 30)[::2, :21]
    dw, db = weight_gradient(dy, x)
    torch.testing.assert_close(dw, dy.t() @ x)
    torch.testing.assert_close(db, dy.sum(0))


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty(rows: int, outputs: int, inputs: int) -> None:
    dw, db = weight_gradient(draw(rows, outputs), draw(rows, inputs))
    assert dw.shape == (outputs, inputs)
    assert not dw.any()
    assert rows or not db.any()


def test_the_same_for_any_number_of_threads() -> None:
    dy, x = draw(5000, 70), draw(5000, 90)
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


def test_opcheck() -> None:
    opcheck(weight_gradient, (draw(9, 5), draw(9, 3)))
