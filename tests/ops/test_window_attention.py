"""Window attention: windows, the padding's keys and values, and what does not fit."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract import DTYPES, check, draw, evaluate
from tests.ops.tiles import attention_tiles
from uniformer_kernels import BackendError, joint_attention, reference, window_attention
from uniformer_kernels.kernels import kernels
from uniformer_kernels.triton import INTERPRETED

_LEAST, _MOST = (3, 10) if INTERPRETED else (1, 20)  # windows take the interpreter long


def hold(grid, num_heads, d, window_size, *, dtype=torch.float32, qkv=None, scale=None) -> None:
    """Check one call against the contract; ``grid`` is ``[B, T, H, W]``."""
    packed = 3 * num_heads * d
    options = {"num_heads": num_heads, "window_size": window_size, "scale": scale}
    check(
        partial(window_attention, **options),
        partial(reference.window_attention, **options),
        {
            "qkv": draw(*grid, packed, dtype=dtype) if qkv is None else qkv,
            "bias": draw(packed, dtype=dtype),
        },
        reduction=max(math.prod(grid), d),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("grid", "num_heads", "d", "window_size"),
    [
        ((1, 1, 14, 14), 2, 32, 14),  # one whole window
        ((1, 1, 18, 20), 1, 28, 14),  # whole and cut ones, several tiles of queries
        ((1, 1, 4, 6), 2, 1, 2),  # whole ones only
        ((1, 3, 5, 7), 2, 5, 4),  # frames
        ((2, 1, 5, 3), 1, 16, 9),  # larger than the grid
        ((1, 1, 3, 11), 1, 8, 4),  # larger in one axis
        ((1, 1, 3, 4), 2, 8, 1),  # each position for itself
    ],
    ids=str,
)
def test_values_and_gradients(grid, num_heads, d, window_size, dtype, backend) -> None:
    hold(grid, num_heads, d, window_size, dtype=dtype)


@pytest.mark.parametrize(("m", "n"), [(16, 64), (64, 16)])
def test_in_several_blocks(m, n, backend) -> None:
    """Whole ones, a rest and, in a cut window, none at all, of queries and of keys."""
    with attention_tiles("window_attention", backend, BLOCK_M=m, BLOCK_N=n):
        hold((1, 1, 9, 10), 1, 8, 8, scale=-0.4)
        hold((1, 1, 9, 9), 1, 8, 9)


def test_windows_of_32(backend) -> None:
    hold((1, 1, 33, 20), 1, 4, 32, dtype=torch.float16)


def test_large_heads(backend) -> None:
    if backend == "triton":
        with pytest.raises(BackendError, match="head_dim is 130, expected at most 128"):
            hold((1, 1, 2, 3), 1, 130, 2)
    else:
        hold((1, 1, 2, 3), 1, 130, 2)


def test_opcheck(backend) -> None:
    if backend == "reference":
        pytest.skip("no operator of its own")
    ops, qkv, bias = kernels(backend), draw(1, 20, 48), draw(48)
    options = (2, 5, 3, 0.25)
    torch.library.opcheck(ops.window_attention.default, (qkv, bias, *options))
    out, lse = ops.window_attention(qkv, bias, *options)
    arguments = (draw(*out.shape), qkv, bias, out, lse, *options)
    torch.library.opcheck(ops.window_attention_backward.default, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_definition(dtype, backend) -> None:
    """One query after another, its keys looked up on a grid that goes on as the bias."""
    B, H, W, heads, d, p = 2, 5, 4, 2, 3, 3
    qkv, bias = draw(B, 1, H, W, 3 * heads * d, dtype=dtype), draw(3 * heads * d, dtype=dtype)
    want = torch.empty(B, 1, H, W, heads * d, dtype=torch.float64)

    def at(b, y, x, third, h):
        row = qkv[b, 0, y, x] if y < H and x < W else bias
        return row.double().view(3, heads, d)[third, h]

    for b in range(B):
        for y in range(H):
            for x in range(W):
                window = [(y // p * p + i, x // p * p + j) for i in range(p) for j in range(p)]
                for h in range(heads):
                    k = torch.stack([at(b, *place, 1, h) for place in window])
                    v = torch.stack([at(b, *place, 2, h) for place in window])
                    weights = (k @ at(b, y, x, 0, h) / d**0.5).softmax(0)
                    want[b, 0, y, x, h * d : (h + 1) * d] = weights @ v
    tolerance = 20 * torch.finfo(dtype).eps
    got = window_attention(qkv, bias, heads, p).double()
    torch.testing.assert_close(got, want, rtol=tolerance, atol=max(tolerance, 1e-5))


@given(
    grid=st.tuples(
        st.integers(1, 2), st.integers(1, 2), st.integers(1, _MOST), st.integers(1, _MOST)
    ),
    heads=st.integers(1, 3),
    d=st.integers(1, 20),
    window_size=st.integers(_LEAST, 24),
    layout=st.sampled_from(["plain", "columns first", "channels first", "part"]),
    dtype=st.sampled_from([torch.float32, torch.float16] if INTERPRETED else DTYPES),
    seed=st.integers(0, 2**32),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_and_strides(grid, heads, d, window_size, layout, dtype, seed, backend) -> None:
    torch.manual_seed(seed)
    B, T, H, W = grid
    packed = 3 * heads * d
    qkv = {
        "plain": lambda: draw(*grid, packed, dtype=dtype),
        "columns first": lambda: draw(B, T, W, H, packed, dtype=dtype).transpose(2, 3),
        "channels first": lambda: draw(packed, *grid, dtype=dtype).movedim(0, -1),
        "part": lambda: draw(B, T, H + 1, W + 2, packed + 3, dtype=dtype)[:, :, 1:, 1:-1, 2:-1],
    }[layout]()
    hold(grid, heads, d, window_size, dtype=dtype, qkv=qkv)


@pytest.mark.parametrize("scale", [0.0, 0.37, -0.5, 1.5])
def test_scale(scale, backend) -> None:
    hold((1, 1, 5, 6), 2, 8, 4, scale=scale)


def test_a_window_as_large_as_the_grid_is_joint_attention(backend) -> None:
    qkv = draw(2, 1, 6, 6, 96)
    want = joint_attention(qkv.view(2, 36, 96), 2).view(2, 1, 6, 6, 32)
    torch.testing.assert_close(window_attention(qkv, draw(96), 2, 6), want)


def test_no_bias_is_a_bias_of_zeros(backend) -> None:
    qkv = draw(1, 1, 5, 6, 48)
    want = window_attention(qkv, torch.zeros(48), 2, 4)
    assert torch.equal(window_attention(qkv, None, 2, 4), want)
    gradients = [
        evaluate(lambda qkv, b=b: window_attention(qkv, b, 2, 4).square(), {"qkv": qkv},
                 upstream=torch.ones_like)["qkv"]
        for b in (None, torch.zeros(48))
    ]  # fmt: skip
    assert torch.equal(*gradients)


def test_the_gradient_of_the_bias_is_the_padding_s(backend) -> None:
    """None for the queries, none at all without padding; the padding draws all values to it."""
    qkv, bias = draw(2, 1, 6, 6, 48), draw(48)
    whole, cut = (
        evaluate(partial(window_attention, num_heads=2, window_size=p), {"qkv": qkv, "bias": bias})[
            "bias"
        ]
        for p in (3, 4)
    )
    assert not whole.any()
    assert not cut[:16].any()
    assert cut[16:].all()
    # All weights are equal where keys are: the share of the padding is a matter of counting.
    qkv[..., 16:32], bias[16:32] = 1, 1
    y = window_attention(qkv[:, :, :1, :1], bias, 2, 4)
    want = (qkv[:, :, :1, :1, 32:] + 15 * bias[32:]) / 16
    torch.testing.assert_close(y, want)


def test_large_scores_do_not_overflow(backend) -> None:
    qkv, bias = draw(1, 1, 5, 5, 48) * 60, draw(48) * 60
    y = window_attention(qkv, bias, 2, 4)
    want = reference.window_attention(qkv.double(), bias.double(), 2, 4)
    torch.testing.assert_close(y.double(), want, rtol=1e-3, atol=1e-2)


def test_nan_stays_in_its_window(backend) -> None:
    qkv, bias = draw(1, 1, 5, 8, 24), draw(24)
    qkv[0, 0, 1, 6, 9] = math.nan  # a key of the upper right window
    bad = window_attention(qkv, bias, 1, 4).isnan()[0, 0].any(-1)
    want = torch.zeros(5, 8, dtype=torch.bool)
    want[:4, 4:] = True
    assert torch.equal(bad, want)
    bias[9] = math.nan  # reaches the windows that are padded
    want[4:] = True
    assert torch.equal(window_attention(qkv, bias, 1, 4).isnan()[0, 0].any(-1), want)


def test_bits_do_not_depend_on_threads() -> None:
    inputs = {"qkv": draw(2, 1, 18, 20, 192), "bias": draw(192)}
    dy = draw(2, 1, 18, 20, 64)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        function = partial(window_attention, num_heads=2, window_size=14)
        results.append(evaluate(function, inputs, upstream=lambda _: dy))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.parametrize("grid", [(0, 1, 5, 6), (2, 0, 5, 6), (2, 1, 0, 6), (2, 1, 5, 0)], ids=str)
def test_nothing_at_all(grid, backend) -> None:
    qkv, bias = draw(*grid, 48).requires_grad_(), draw(48).requires_grad_()
    y = window_attention(qkv, bias, 2, 4)
    y.sum().backward()
    assert y.shape == (*grid, 16)
    assert qkv.grad.shape == qkv.shape
    assert not bias.grad.any()


@pytest.mark.parametrize(
    ("shape", "bias", "num_heads", "window_size", "message"),
    [
        ((2, 5, 6, 48), 48, 2, 4, r"qkv: expected \[B, T, H, W, 3C\], got \[2, 5, 6, 48\]"),
        ((2, 1, 5, 6, 48), 16, 2, 4, r"bias: expected \[48\], got \[16\]"),
        ((2, 1, 5, 6, 50), 50, 2, 4, r"num_heads: .*got 2 with qkv \[2, 1, 5, 6, 50\]"),
        ((2, 1, 5, 6, 48), 48, 3, 4, r"num_heads: .*got 3 with"),
        ((2, 1, 5, 6, 48), 48, 0, 4, r"num_heads: .*got 0 with"),
        ((2, 1, 5, 6, 48), 48, 2, 0, r"window_size: expected at least 1, got 0"),
        ((2, 1, 5, 6, 48), 48, 2, -3, r"window_size: expected at least 1, got -3"),
    ],
    ids=str,
)
def test_refuses_sizes_that_do_not_fit(shape, bias, num_heads, window_size, message) -> None:
    with pytest.raises(ValueError, match=f"window_attention: {message}"):
        window_attention(draw(*shape), draw(bias), num_heads, window_size)
