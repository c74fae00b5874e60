"""Gradients of float32's feed-forward network by products of bfloat16, where there is AMX."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from tests.contract import check, draw
from uniformer_kernels import bfloat16, feed_forward, reference

backward = torch.ops.uniformer_kernels.feed_forward_backward
split_backward = torch.ops.uniformer_kernels.split_feed_forward_backward

pytestmark = pytest.mark.skipif(
    not bfloat16.multiplies(torch.float32), reason="float32 goes to oneDNN here"
)


def network(C: int, hidden: int, C_out: int) -> dict[str, Tensor]:
    shapes = {"fc1_weight": (hidden, C), "fc1_bias": (hidden,), "fc2_weight": (C_out, hidden)}
    layers = {name: draw(*shape) for name, shape in shapes.items()}
    return layers | {"fc2_weight": layers["fc2_weight"] * hidden**-0.5, "fc2_bias": draw(C_out)}


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize(
    ("rows", "C", "hidden", "C_out"),
    [
        (33, 1, 1, 1),
        (64, 32, 32, 32),  # whole blocks
        (75, 5, 70, 9),
        (700, 40, 600, 33),  # several parts, the last one with fewer rows
        (1100, 300, 1000, 260),  # several chunks, and groups of hidden channels
    ],
)
def test_values(rows: int, C: int, hidden: int, C_out: int, activation: str) -> None:
    inputs = {"x": draw(rows, C), **network(C, hidden, C_out)}
    kernel, plain = (
        partial(f, activation=activation) for f in (feed_forward, reference.feed_forward)
    )
    check(kernel, plain, inputs, reduction=max(rows, C * hidden))


@pytest.mark.parametrize("bias", [True, False])
def test_serves_every_set_of_weights(bias: bool, monkeypatch) -> None:
    """It is these kernels that compute; an input that asks for no gradient gets none."""
    found = []
    kernel = bfloat16.feed_forward_backward

    def counted(*args) -> tuple[Tensor, ...] | None:
        found.append(kernel(*args))
        return found[-1]

    monkeypatch.setattr(bfloat16, "feed_forward_backward", counted)
    inputs = {"x": draw(2, 3, 13, 20)[:, :, 2:], **network(20, 50, 17)}
    if not bias:
        inputs |= {"fc1_bias": None, "fc2_bias": None}
    for needs in (None, {"fc1_weight"}, {"x", "fc2_weight"}):
        check(feed_forward, reference.feed_forward, inputs, reduction=1000, needs=needs)
        dx, *_ = found.pop()
        assert dx.shape == (66 if needs is None or "x" in needs else 0, 20)
    check(feed_forward, reference.feed_forward, inputs, reduction=1000, needs={"x"})
    assert not found


def test_the_same_for_any_number_of_threads() -> None:
    x, (weight, bias, back, _) = draw(1500, 70), network(70, 300, 50).values()
    dy, results = draw(1500, 50), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(split_backward(dy, x, weight, bias, back, False, True))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 3e38])
@pytest.mark.parametrize("position", range(5))
def test_what_is_not_finite(position: int, value: float, monkeypatch) -> None:
    """Numbers that are not, or whose products are not, come to what products one by one do."""
    arguments = [draw(80, 30), draw(80, 40), *list(network(40, 70, 30).values())[:3]]
    arguments[position].flatten()[7] = value
    got = backward(*arguments, "gelu", True, True)
    monkeypatch.setattr(bfloat16, "feed_forward_backward", lambda *_: None)
    want = backward(*arguments, "gelu", True, True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_refuses_what_it_cannot_read() -> None:
    x, (weight, bias, back, _) = draw(40, 6), network(6, 8, 5).values()
    dy = draw(40, 5)
    refused = {
        r"x \[N, C\] and dy": (dy.double(), x, weight, bias, back),
        "with adjacent channels": (dy, draw(6, 40).t(), weight, bias, back),
        r"fc2_weight \[C_out, hidden\]": (dy, x, weight, bias, back.t()),
        r"fc1_bias \[hidden\]": (dy, x, weight, bias[1:], back),
    }
    for message, arguments in refused.items():
        with pytest.raises(RuntimeError, match=message):
            split_backward(*arguments, False, True)


@pytest.mark.parametrize("want_input", [True, False])
def test_opcheck(want_input: bool) -> None:
    x, (weight, bias, back, _) = draw(40, 6), network(6, 8, 5).values()
    opcheck(split_backward, (draw(40, 5), x, weight, bias, back, False, want_input))
