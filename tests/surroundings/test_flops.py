"""PyTorch's flop counter counts the kernels as the products they are made of."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import uniformer_kernels as uk
from tests.contract import draw
from tests.ops.calls import CALLS, Call
from tests.surroundings.models import input_of, loss_of, model_of
from tests.surroundings.test_decompositions import is_backward
from uniformer_kernels.flops import _MULTIPLICATIONS
from uniformer_kernels.kernels import KERNELS

NOTHING = {  # norms, sums, sorts and activations, as of PyTorch's
    "activation_backward",
    "bfloat16_pack",
    "fold_batch_norm",
    "fold_batch_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "moments",
    "moments_backward",
    "scale_shift",
    "scale_shift_backward",
    "scale_shift_backward_sums",
    "token_recover",
    "token_recover_backward",
    "token_recover_with_importance",
    "token_recover_with_importance_backward",
    "token_shrink",
    "token_shrink_backward",
}


def counted(function, *args) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()


def test_every_kernel_is_counted_or_known_to_count_nothing() -> None:
    assert set(KERNELS) - NOTHING <= set(_MULTIPLICATIONS)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.operator)
def test_forward_as_plain_pytorch(call: Call) -> None:
    inputs = call.inputs()
    got = counted(lambda: call.kernel(**inputs))
    if call.operator == "query_attention":  # no keys, no values: the query goes to the tokens
        B, N, C, R = 2, 9, 12, 3
        assert got == 2 * B * C * (C + C + 2 * R * N + C)  # to the heads, to the tokens, and back
    else:
        assert got == counted(lambda: call.reference(**inputs))


def gradients(function, *inputs: Tensor) -> int:
    """Of the backward pass alone."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves).sum()
    return counted(lambda: torch.autograd.grad(y, leaves))


def test_gradients() -> None:
    B, N, C = 2, 9, 16
    product = 2 * B * N * N * C
    assert gradients(lambda qkv: uk.joint_attention(qkv, 2), draw(B, N, 3 * C)) == 5 * product

    x, weight = draw(2, 3, 5, 6, 4), draw(4, 1, 3, 5, 3)
    taps = 2 * x.numel() * 45
    assert gradients(uk.depthwise_conv3d, x, weight) == 2 * taps
    assert gradients(lambda x: uk.depthwise_conv3d(x, weight), x) == taps

    x, weight = draw(7, 16), draw(8, 16)
    assert gradients(uk.linear, x, weight) == 2 * 2 * 7 * 16 * 8
    layers = draw(32, 16), draw(32), draw(8, 32), draw(8)
    first, second = 2 * 7 * 16 * 32, 2 * 7 * 32 * 8
    assert gradients(uk.feed_forward, x, *layers) == 3 * first + 2 * second

    # Windows of 3 x 3 over 4 x 5, filled up, are 2 x 2.
    windowed = gradients(lambda t: uk.window_attention(t, None, 2, 3), draw(1, 1, 4, 5, 48))
    assert windowed == 5 * 2 * 4 * 9 * 9 * 16


@pytest.mark.parametrize("kind", ["image", "video", "dense"])
def test_forward_of_a_model_as_plain_pytorch(kind: str) -> None:
    model, x = model_of(kind), input_of(kind)
    with torch.no_grad():
        got = counted(model, x)
        with uk.use_backend("reference"):
            assert got == counted(model, x)


def test_the_score_of_a_light_model_is_counted() -> None:
    """A row of every hourglass block's attention is computed once more."""
    model, x = model_of("light").requires_grad_(False), input_of("light")
    got = counted(model, x)
    with uk.use_backend("reference"):
        want = counted(model, x)
    tokens = [17, 10, 4]  # 16 and the score token; it, half of them and their representative
    rows = sum(2 * 2 * n * dim for n, dim in zip(tokens, (24, 24, 32), strict=True))
    assert got == want + rows


def test_counted_wherever_the_counter_is_imported_from() -> None:
    """Before the package or behind it; and the package itself does without."""
    count = (
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "with FlopCounterMode(display=False) as counter:\n"
        "    uniformer_kernels.joint_attention(torch.randn(2, 9, 48), 2)\n"
        "assert counter.get_total_flops() == 2 * 2 * 2 * 9 * 9 * 16\n"
    )
    script = (
        "import sys, torch, uniformer_kernels\n"
        "assert 'torch.utils.flop_counter' not in sys.modules\n" + count
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_training_counts_gradients() -> None:
    model, x = model_of("image").train(), input_of("image")
    with FlopCounterMode(display=False) as counter:
        loss = loss_of(model(x))
        forward = counter.get_total_flops()
        loss.backward()
    assert 2 * forward < counter.get_total_flops() - forward < 3 * forward


def test_names_of_backward_kernels() -> None:
    """The formulas of gradients are those of kernels that make gradients."""
    assert {n for n in _MULTIPLICATIONS if is_backward(n)} <= {n for n in KERNELS if is_backward(n)}
