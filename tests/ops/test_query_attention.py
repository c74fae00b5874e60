"""Attention of one query over normalised tokens: heads, statistics, and what does not fit."""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

from tests.contract import DTYPES, check, draw
from uniformer_kernels import query_attention, reference, use_backend
from uniformer_kernels.kernels import kernels
from uniformer_kernels.triton import INTERPRETED


def arguments(B: int, N: int, C: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights of a size that leaves scores of about one."""
    weight = draw(3 * C, C, dtype=torch.float64) / C**0.5
    return {
        "query": draw(B, 1, C, dtype=dtype),
        "memory": draw(B, N, C, dtype=dtype),
        "norm_weight": draw(C, dtype=dtype),
        "norm_bias": draw(C, dtype=dtype),
        "in_proj_weight": weight.to(dtype),
        "in_proj_bias": draw(3 * C, dtype=dtype),
    }


def hold(inputs: dict[str, Tensor], num_heads: int, **options: Any) -> None:
    B, N, C = inputs["memory"].shape
    check(
        partial(query_attention, num_heads=num_heads, **options),
        partial(reference.query_attention, num_heads=num_heads, **options),
        inputs,
        reduction=max(B * N, 3 * C) * C,  # products one behind another
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "num_heads"),
    [
        ((1, 1, 4), 1),
        ((2, 1, 64), 2),  # one token: its value, whatever the score
        ((3, 7, 6), 6),  # one-element heads
        ((2, 17, 56), 2),
        ((1, 394, 96), 12),
        ((2, 70, 140), 20),
    ],
    ids=str,
)
def test_values_and_gradients(size, num_heads, dtype, backend) -> None:
    hold(arguments(*size, dtype=dtype), num_heads)


@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_eps(eps, backend) -> None:
    hold(arguments(2, 9, 12), 2, eps=eps)


def test_equals_pytorchs_module(backend) -> None:
    B, N, C, heads = 2, 11, 24, 3
    inputs = arguments(B, N, C, torch.float64)
    module = nn.MultiheadAttention(C, heads, batch_first=True, dtype=torch.float64)
    module.in_proj_weight.data, module.in_proj_bias.data = (
        inputs["in_proj_weight"],
        inputs["in_proj_bias"],
    )
    nn.init.eye_(module.out_proj.weight)
    y = F.layer_norm(inputs["memory"], [C], inputs["norm_weight"], inputs["norm_bias"], 1e-5)
    want, _ = module(inputs["query"], y, y)
    torch.testing.assert_close(query_attention(**inputs, num_heads=heads), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_fused_formulation_is_exact(dtype) -> None:
    inputs = arguments(2, 200, 96, dtype)
    with use_backend("cpu"):
        got = query_attention(**inputs, num_heads=12).double()
    exact = {name: t.double() for name, t in inputs.items()}
    want = reference.query_attention(**exact, num_heads=12)
    assert (got - want).norm() < (1e-12 if dtype == torch.float64 else 1e-5) * want.norm()


def test_gradcheck_in_full(backend) -> None:
    leaves = [t.requires_grad_() for t in arguments(2, 3, 4, torch.float64).values()]
    assert gradcheck(lambda *tensors: query_attention(*tensors, 2), leaves)


def test_the_keys_bias_does_not_matter(backend) -> None:
    inputs = arguments(2, 9, 12, torch.float64)
    want = query_attention(**inputs, num_heads=2)
    inputs["in_proj_bias"][12:24] += 3
    torch.testing.assert_close(query_attention(**inputs, num_heads=2), want)


def test_large_means_do_not_cancel(backend) -> None:
    """A variance from the mean square would be off by a twentieth here."""
    inputs = arguments(2, 50, 48)
    inputs["memory"] += 300
    hold(inputs, 4)


def test_large_scores_do_not_overflow(backend) -> None:
    inputs = arguments(1, 11, 48)
    inputs["query"] *= 500
    y = query_attention(**inputs, num_heads=2)
    assert y.isfinite().all()
    exact = {name: t.double() for name, t in inputs.items()}
    want = reference.query_attention(**exact, num_heads=2)
    torch.testing.assert_close(y.double(), want, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["query", "memory"])
def test_nan_stays_in_its_sample(name, backend) -> None:
    inputs = arguments(3, 7, 12)
    inputs[name][1, 0, 5] = float("nan")
    bad = query_attention(**inputs, num_heads=3).isnan()
    assert bad[1].all()
    assert not bad[[0, 2]].any()


def pooling(B: int, R: int, N: int, C: int, dtype: torch.dtype) -> dict[str, Any]:
    """What the backward kernel takes."""
    given = {"rows": draw(B, R, C), "tokens": draw(B, N, C, dtype=dtype)}
    names = "pooled", "lse", "mean", "rstd"
    found = kernels("cpu").normalised_pooling(*given.values(), 1e-5)
    dpooled = {"dpooled": draw(B, R, C)}
    return dpooled | given | dict(zip(names, found, strict=True)) | {"want_tokens": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(2, 5, 129, 19), (1, 13, 64, 8), (3, 1, 1, 70)], ids=str)
def test_pooling_on_a_cpu(size, dtype) -> None:
    """Alone, against the same in float64; any number of threads gives the same bits."""
    given = pooling(*size, dtype)
    forward, backward = (
        kernels("cpu").normalised_pooling,
        kernels("cpu").normalised_pooling_backward,
    )
    leaves = [given[name].double().requires_grad_() for name in ("rows", "tokens")]
    rows, y = leaves[0], F.layer_norm(leaves[1], leaves[1].shape[-1:])
    scores = rows @ y.mT
    want = scores.softmax(-1) @ y
    wants = want, *torch.autograd.grad(want, leaves, given["dpooled"].double())
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        first = forward(given["rows"], given["tokens"], 1e-5)
        found.append([*first, *backward(*given.values())])
    assert all(map(torch.equal, found[0] * 2, [*found[1], *found[2]]))
    pooled, lse, *_, drows, dtokens = found[0]
    bound = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for got, exact, most in zip((pooled, drows, dtokens), wants, (1e-5, 1e-5, bound), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=most, atol=most * given["rows"].norm())
    torch.testing.assert_close(lse, (scores.logsumexp(-1) / math.log(2)).float())
    drows_alone, nothing = backward(*(given | {"want_tokens": False}).values())
    assert torch.equal(drows_alone, drows)
    assert nothing.numel() == 0


def test_opcheck() -> None:
    given = pooling(2, 3, 9, 16, torch.bfloat16)
    forward, backward = (
        kernels("cpu").normalised_pooling,
        kernels("cpu").normalised_pooling_backward,
    )
    torch.library.opcheck(forward.default, (given["rows"], given["tokens"], 1e-5))
    for want in (True, False):
        torch.library.opcheck(backward.default, tuple((given | {"want_tokens": want}).values()))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": torch.zeros(2, 3, 8).double()}, r"rows \[B, R, C\] of float32 and tokens"),
        ({"tokens": torch.zeros(2, 5, 9)}, r"rows \[B, R, C\] of float32 and tokens"),
        ({"tokens": torch.zeros(2, 0, 8)}, "at least one token and channel"),
        ({"tokens": torch.zeros(2, 5, 8).double()}, "tokens of float32, bfloat16 or float16"),
        ({"dpooled": torch.zeros(2, 3, 9)}, r"dpooled \[B, R, C\] of float32"),
        ({"pooled": torch.zeros(2, 3, 8).half()}, r"pooled \[B, R, C\] of float32"),
        ({"lse": torch.zeros(2, 4)}, r"lse \[B, R\] of float32"),
        ({"mean": torch.zeros(2, 4)}, r"mean \[B, N\] of float32"),
        ({"rstd": torch.zeros(5, 2).t()}, r"rstd \[B, N\] of float32, contiguous"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_the_kernels_read_nothing_outside_a_tensor(changed, message) -> None:
    given = pooling(2, 3, 5, 8, torch.float32) | changed
    with pytest.raises(RuntimeError, match=message):
        kernels("cpu").normalised_pooling_backward(*given.values())


@pytest.mark.skipif(not INTERPRETED, reason="tiles are Triton's")
def test_other_tile_sizes(backend) -> None:
    """Several blocks of tokens and of channels, the last ones not full."""
    kernels = importlib.import_module("uniformer_kernels.triton.query_attention")
    tile = {"BLOCK_N": 16, "BLOCK_C": 16}
    with kernels.FORWARD.trying(**tile), kernels.BACKWARD.trying(**tile):
        hold(arguments(2, 35, 42), 3)


@given(
    B=st.integers(1, 3),
    N=st.integers(1, 40),
    heads=st.integers(1, 4),
    d=st.integers(3, 17),
    layout=st.sampled_from(["plain", "tokens first", "channels first", "part"]),
    dtype=st.sampled_from([torch.float32, torch.float16] if INTERPRETED else DTYPES),
    seed=st.integers(0, 2**32),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_and_strides(B, N, heads, d, layout, dtype, seed, backend) -> None:
    torch.manual_seed(seed)
    C = heads * d
    memory = {
        "plain": lambda: draw(B, N, C, dtype=dtype),
        "tokens first": lambda: draw(N, B, C, dtype=dtype).transpose(0, 1),
        "channels first": lambda: draw(B, C, N, dtype=dtype).transpose(1, 2),
        "part": lambda: draw(B, N + 2, C + 3, dtype=dtype)[:, 1:-1, 2:-1],
    }[layout]()
    hold({**arguments(B, N, C, dtype), "memory": memory}, heads)


@pytest.mark.parametrize(
    ("shapes", "num_heads", "message"),
    [
        ({"query": (2, 8)}, 2, r"query: expected \[B, 1, C\], got \[2, 8\]"),
        ({"query": (2, 2, 8)}, 2, r"query: expected \[B, 1, C\], got \[2, 2, 8\]"),
        ({"memory": (3, 5, 8)}, 2, r"memory: expected \[2, N, 8\], got \[3, 5, 8\]"),
        ({"memory": (2, 5, 9)}, 2, r"memory: expected \[2, N, 8\], got \[2, 5, 9\]"),
        ({"memory": (2, 0, 8)}, 2, r"memory: expected N of at least 1, got \[2, 0, 8\]"),
        ({"norm_weight": (9,)}, 2, r"norm_weight: expected \[8\], got \[9\]"),
        ({"norm_bias": (1, 8)}, 2, r"norm_bias: expected \[8\], got \[1, 8\]"),
        ({"in_proj_weight": (8, 8)}, 2, r"in_proj_weight: expected \[24, 8\], got \[8, 8\]"),
        ({"in_proj_bias": (8,)}, 2, r"in_proj_bias: expected \[24\], got \[8\]"),
        ({}, 3, r"num_heads: expected a divisor of C .*got 3 with query \[2, 1, 8\]"),
        ({}, 0, r"num_heads: expected a divisor of C .*got 0 with query \[2, 1, 8\]"),
    ],
    ids=str,
)
def test_refuses_sizes_that_do_not_fit(shapes, num_heads, message, backend) -> None:
    inputs = arguments(2, 5, 8) | {name: draw(*shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=f"query_attention: {message}"):
        query_attention(**inputs, num_heads=num_heads)
