"""Shrinking and recovering on both of a GPU's backends."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import uniformer_kernels as uk
from tests.contract import check, draw, evaluate
from uniformer_kernels import cuda, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
CALLS = [  # shape, kept
    ((4, 800, 224), 400),
    ((4, 400, 448), 200),
    ((1, 8192, 24), 4096),
    ((3, 77, 33), 5),  # one by one
    ((2, 41, 56), 40),  # the representative is a token itself
    ((2, 9, 64), 0),
]


@pytest.fixture(autouse=True, params=["cuda", "triton"])
def _backend(request):
    if request.param == "cuda" and (reason := cuda.declines(torch.empty(0, device="cuda"))):
        pytest.skip(reason)
    with uk.use_backend(request.param):
        yield


def shrink(operator, keep: int, **inputs: Tensor) -> Tensor:
    return operator(keep=keep, **inputs)[0]


def recover(operator, part: int, **inputs: Tensor) -> Tensor:
    return operator(trade_off=0.5, **inputs)[part]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "keep"), CALLS, ids=str)
def test_values_and_gradients(shape, keep, dtype) -> None:
    B, N, C = shape
    x, importance = draw(*shape, dtype=dtype).cuda(), torch.rand(B, N).cuda()
    prefix, kept, delta = (draw(B, n, C, dtype=dtype).cuda() for n in (1, keep, 1))
    check(
        partial(shrink, uk.token_shrink, keep),
        partial(shrink, reference.token_shrink, keep),
        {"x": x, "importance": importance, "prefix": prefix},
        reduction=max(N, C),
    )
    index = uk.token_shrink(x, importance, keep)[1]
    assert torch.equal(index, reference.token_shrink(x, importance, keep)[1])
    check(
        partial(uk.token_recover, index=index),
        partial(reference.token_recover, index=index),
        {"x": x, "kept": kept, "delta": delta},
        reduction=N,
    )
    score = torch.rand(B, keep + 3).cuda()[:, :-1]
    inputs = {"x": x, "index": index, "kept": kept, "delta": delta}
    check(
        partial(recover, uk.token_recover_with_importance, 1, **inputs),
        partial(recover, reference.token_recover_with_importance, 1, **inputs),
        {"importance": importance, "score": score},
        reduction=1,
    )
    y = uk.token_recover_with_importance(**inputs, importance=importance, score=score)[0]
    assert torch.equal(y, uk.token_recover(**inputs))


def test_ties_go_to_the_lower_index() -> None:
    importance = (torch.randint(5, (8, 3000)) / 5).cuda()
    x = draw(8, 3000, 8).cuda()
    for keep in (1, 1500, 2999):
        index = uk.token_shrink(x, importance, keep)[1]
        assert torch.equal(index, reference.token_shrink(x, importance, keep)[1])


def test_bitwise_repeatable() -> None:
    inputs = {"x": draw(4, 800, 224).cuda(), "importance": torch.rand(4, 800).cuda()}
    dy = draw(4, 401, 224)
    run = partial(shrink, uk.token_shrink, 400)
    first = evaluate(run, inputs, upstream=lambda _: dy)
    for _ in range(10):
        again = evaluate(run, inputs, upstream=lambda _: dy)
        assert all(torch.equal(first[name], again[name]) for name in first)
