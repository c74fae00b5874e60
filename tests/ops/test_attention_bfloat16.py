"""Attention where processors multiply bfloat16 in pairs: half pairs, blocks, what is rounded."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from tests.contract import check, draw, evaluate
from uniformer_kernels import joint_attention, reference, window_attention


def hold(qkv, num_heads, scale=None, reference=reference.joint_attention) -> None:
    check(
        partial(joint_attention, num_heads=num_heads, scale=scale),
        partial(reference, num_heads=num_heads, scale=scale),
        {"qkv": qkv},
        reduction=max(qkv.shape[1], qkv.shape[2] // 3 // num_heads),
    )


def sdpa(qkv, num_heads, scale):
    """PyTorch's fused attention: float32 scores and sums, bfloat16 weights."""
    q, k, v = reference.attention.heads(qkv, num_heads)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("d", [1, 7, 28, 32, 33, 64, 128])
@pytest.mark.parametrize("N", [1, 2, 31, 33, 95, 97, 230])
def test_values_and_gradients(N, d, backend) -> None:
    """Tokens and channels that end in the middle of a pair, a tile, a block."""
    hold(draw(2, N, 3 * 2 * d, dtype=torch.bfloat16), 2)


@pytest.mark.parametrize(("N", "d"), [(97, 28), (230, 64)])
def test_no_worse_than_the_fused_attention(N, d) -> None:
    """It keeps float32 scores, unlike the reference, and is the stricter measure."""
    hold(draw(2, N, 3 * 2 * d, dtype=torch.bfloat16), 2, reference=sdpa)


@pytest.mark.parametrize("scale", [0.0, -0.5, 3.0])
def test_scale(scale, backend) -> None:
    hold(draw(2, 97, 96, dtype=torch.bfloat16), 2, scale)


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_strides(offset, backend) -> None:
    """Rows that begin at odd numbers, and tokens that are not adjacent."""
    whole = draw(3, 100, 2 * 96 + 3, dtype=torch.bfloat16)
    hold(whole[:, ::2, offset : offset + 96], 2)
    hold(whole[..., : 2 * 96 : 2].transpose(0, 1), 2)


def test_maxima_that_move() -> None:
    """Scores that grow, or fall, past what a softmax without its maximum can hold."""
    qkv = draw(1, 300, 96, dtype=torch.bfloat16)
    q, k, _ = qkv.view(1, 300, 3, 32).unbind(2)
    q.abs_()[:, ::2] *= -1
    k.copy_(torch.linspace(0, 60, 300).view(1, 300, 1))
    y = joint_attention(qkv, 1).double()
    want = reference.joint_attention(qkv.double(), 1)
    torch.testing.assert_close(y, want, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("third", "rows"), [(0, [40]), (1, range(97)), (2, range(97))])
def test_nan_stays_in_its_head(third, rows) -> None:
    qkv = draw(2, 97, 84, dtype=torch.bfloat16)  # two heads of fourteen channels
    qkv[1, 40, third * 28 + 14 + 3] = math.nan
    bad = joint_attention(qkv, 2).isnan()
    want = torch.zeros_like(bad)
    want[1, list(rows), slice(17, 18) if third == 2 else slice(14, 28)] = True
    assert torch.equal(bad, want)


@pytest.mark.parametrize(("grid", "window_size"), [((7, 7), 7), ((9, 11), 7), ((20, 13), 14)])
@pytest.mark.parametrize("d", [28, 32])
def test_windows(grid, window_size, d, backend) -> None:
    options = {"num_heads": 2, "window_size": window_size}
    check(
        partial(window_attention, **options),
        partial(reference.window_attention, **options),
        {
            "qkv": draw(2, 1, *grid, 3 * 2 * d, dtype=torch.bfloat16),
            "bias": draw(3 * 2 * d, dtype=torch.bfloat16),
        },
        reduction=2 * math.prod(grid),
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_again(threads, backend) -> None:
    qkv, dy = draw(2, 401, 192, dtype=torch.bfloat16), draw(2, 401, 64, dtype=torch.bfloat16)
    attend = partial(joint_attention, num_heads=2)
    torch.set_num_threads(threads)
    first, second = (evaluate(attend, {"qkv": qkv}, upstream=lambda _: dy) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_large_values_behind_large_scores(dtype) -> None:
    """Scores may stay as they are only where their weights times the values fit into float32."""
    qkv = torch.ones(1, 50, 96, dtype=dtype)
    qkv[..., :64] = 2.5  # q k' / sqrt(d) = 35.4, whose exponential is 2^51
    qkv[..., 64:] = 1e25
    out = joint_attention(qkv, 1)
    torch.testing.assert_close(out, qkv[..., 64:], rtol=1e-2, atol=0.0)
