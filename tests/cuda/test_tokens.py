"""The kernels that choose tokens and put them back, run on this processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.contract import draw
from tests.cuda.checks import (
    DTYPES,
    backwards,
    compare,
    notices_change,
    notices_missing,
    notices_nothing,
)
from tests.cuda.emulator import Emulator, barriers
from uniformer_kernels import reference

CALLS = [  # shape, kept, in front of them
    ((2, 9, 12), 4, 1),
    ((1, 1, 1), 0, 0),
    ((3, 30, 17), 29, 0),  # odd channels: one by one
    ((1, 42, 72), 0, 2),  # more than a slice
    ((2, 300, 24), 150, 1),  # more than a thread each
    ((1, 70, 136), 33, 0),
]


def hold(
    emulator: Emulator,
    shape: tuple[int, int, int],
    keep: int,
    prefixed: int,
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor] = Tensor.contiguous,
) -> None:
    """Every result and gradient of one round against the numerical contract."""
    B, N, C = shape
    x, kept, delta = (layout(draw(B, n, C, dtype=dtype)) for n in (N, keep, 1))
    prefix = layout(draw(B, prefixed, C, dtype=dtype)) if prefixed else None
    importance = torch.rand(B, N)
    dtokens = layout(draw(B, prefixed + keep + 1, C, dtype=dtype))

    tokens, index = emulator.token_shrink(x, importance, keep, prefix)
    dx, dimportance = emulator.token_shrink_backward(dtokens, x, importance, index)
    assert index.dtype == torch.int64
    assert torch.equal(index, reference.token_shrink(x, importance, keep)[1])
    got = {"output": tokens, "x": dx, "importance": dimportance}
    inputs = {"x": x, "importance": importance}

    def shrink(x: Tensor, importance: Tensor) -> Tensor:
        front = None if prefix is None else prefix.to(x.dtype)
        return reference.token_shrink(x, importance, keep, prefix=front)[0]

    compare(shrink, inputs, got, dtokens, max(dtokens.shape[1:]))

    dy = layout(draw(*shape, dtype=dtype))
    dx, dkept, ddelta = emulator.token_recover_backward(dy, index)
    y = emulator.token_recover(x, index, kept, delta)
    compare(
        lambda x, kept, delta: reference.token_recover(x, index, kept, delta),
        {"x": x, "kept": kept, "delta": delta},
        {"output": y, "x": dx, "kept": dkept, "delta": ddelta},
        dy,
        max(dy.shape[1:]),
    )


def hold_running_mean(
    emulator: Emulator,
    shape: tuple[int, int, int],
    keep: int,
    prefixed: int,
    dtype: torch.dtype = torch.float32,
    layout: Callable[[Tensor], Tensor] = Tensor.contiguous,
    trade_off: float = 0.5,
) -> None:
    """The importance against the numerical contract, the tokens as without it, bit by bit."""
    B, N, C = shape
    index = torch.stack([torch.randperm(N)[:keep].sort().values for _ in range(B)])
    x, kept, delta = (layout(draw(B, n, C, dtype=dtype)) for n in (N, keep, 1))
    importance, score = (wide_rows(torch.rand(B, n)) for n in (N, prefixed + keep + 1))
    y, updated = emulator.token_recover_with_importance(
        x, index, kept, delta, importance, score, trade_off
    )
    assert torch.equal(y, emulator.token_recover(x, index, kept, delta))

    dy, dupdated = layout(draw(*shape, dtype=dtype)), draw(B, N)
    *tokens, dimportance, dscore = emulator.token_recover_with_importance_backward(
        dy, dupdated, index, prefixed, trade_off
    )
    assert all(map(torch.equal, tokens, emulator.token_recover_backward(dy, index)))
    compare(
        lambda **numbers: reference.token_recover_with_importance(
            x, index, kept, delta, **numbers, trade_off=trade_off
        )[1],
        {"importance": importance, "score": score},
        {"output": updated, "importance": dimportance, "score": dscore},
        dupdated,
        reduction=1,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "keep", "prefixed"), CALLS, ids=str)
def test_values_and_gradients(emulator, shape, keep, prefixed, dtype) -> None:
    hold(emulator, shape, keep, prefixed, dtype)


@pytest.mark.parametrize("trade_off", [0.5, 0.3])
@pytest.mark.parametrize(("shape", "keep", "prefixed"), [*CALLS, ((2, 9, 8), 9, 1)], ids=str)
def test_running_mean(emulator, shape, keep, prefixed, trade_off) -> None:
    hold_running_mean(emulator, shape, keep, prefixed, trade_off=trade_off)


def test_what_is_no_number_stays_where_it_is(emulator) -> None:
    nan, inf = float("nan"), float("inf")
    importance, score = torch.rand(1, 9), torch.rand(1, 8)
    importance[0, :4] = torch.tensor([nan, inf, -inf, 1.0])
    score[0, :5] = torch.tensor([nan, 0.5, inf, inf, nan])  # the first is nobody's
    for trade_off in (0.25, 0.5, 1.0):
        _, updated = emulator.token_recover_with_importance(
            draw(1, 9, 4),
            torch.arange(6)[None],
            draw(1, 6, 4),
            draw(1, 1, 4),
            importance,
            score,
            trade_off,
        )
        want = importance.clone()
        want[:, :6] = want[:, :6].lerp(score[:, 1:-1], trade_off)
        torch.testing.assert_close(updated, want, equal_nan=True)
        assert torch.equal(updated[:, 6:], importance[:, 6:])


def wide_rows(t: Tensor) -> Tensor:
    """Part of more channels, which vectors can read."""
    room = torch.full((*t.shape[:-1], t.shape[-1] + 16), float("nan"), dtype=t.dtype)
    return room[..., 8:-8].copy_(t)


def unaligned_rows(t: Tensor) -> Tensor:
    room = torch.full((*t.shape[:-1], t.shape[-1] + 16), float("nan"), dtype=t.dtype)
    return room[..., 3:-13].copy_(t)


def samples_inside(t: Tensor) -> Tensor:
    return t.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(
    "layout", [wide_rows, unaligned_rows, samples_inside], ids=lambda f: f.__name__
)
def test_layouts(emulator, layout, dtype) -> None:
    hold(emulator, (2, 20, 16), 7, 1, dtype, layout)
    hold_running_mean(emulator, (2, 20, 16), 7, 1, dtype, layout)


def kept_of(emulator: Emulator, importance: list[float], keep: int) -> list[int]:
    row = torch.tensor([importance], dtype=torch.float32)
    return emulator.token_shrink(draw(1, len(importance), 2), row, keep, None)[1][0].tolist()


def test_choice(emulator) -> None:
    """Ties go to the lower index, both zeros are alike, NaN comes first."""
    nan, inf = float("nan"), float("inf")
    assert kept_of(emulator, [1, 1, 1, 1, 1], 2) == [0, 1]
    assert kept_of(emulator, [0, 2, 1, 2, 1, 1, 3], 4) == [1, 2, 3, 6]
    assert kept_of(emulator, [0.0, -0.0, 0.0, 1.0], 2) == [0, 3]
    assert kept_of(emulator, [1e-45, 0.0, 3e-45], 1) == [2]
    assert kept_of(emulator, [1, nan, 3, inf], 2) == [1, 3]
    assert kept_of(emulator, [-inf, -2, -1, inf], 2) == [2, 3]
    assert kept_of(emulator, [0.125] * 300, 150) == list(range(150))


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_choice_among_many(emulator, levels) -> None:
    importance = torch.randint(levels, (2, 2400)) / levels
    x = draw(2, 2400, 1, dtype=torch.bfloat16)
    for keep in (1, 1200, 2399):
        got = emulator.token_shrink(x, importance, keep, None)[1]
        assert torch.equal(got, reference.token_shrink(x, importance, keep)[1])


def test_a_set_without_importance_is_merged_evenly(emulator) -> None:
    x, importance = draw(1, 8, 6), torch.zeros(1, 8)
    importance[:, [1, 6]] = 1.0
    tokens, index = emulator.token_shrink(x, importance, 2, None)
    torch.testing.assert_close(tokens[:, 2], x[:, [0, 2, 3, 4, 5, 7]].mean(1))
    dx, dimportance = emulator.token_shrink_backward(draw(1, 3, 6), x, importance, index)
    assert dx.isfinite().all()
    assert not dimportance.any()


def test_an_index_beside_the_tokens_harms_nobody(sanitized) -> None:
    index = torch.tensor([[-1, 3, 40]])
    x, kept, delta = draw(1, 9, 4), draw(1, 3, 4), draw(1, 1, 4)
    y = sanitized.token_recover(x, index, kept, delta)
    want = x + delta
    want[0, 3] = kept[0, 1]
    assert torch.equal(y, want)
    importance, score = torch.rand(1, 9), torch.rand(1, 5)
    _, updated = sanitized.token_recover_with_importance(
        x, index, kept, delta, importance, score, 1.0
    )
    want = importance.clone()
    want[0, 3] = score[0, 2]
    assert torch.equal(updated, want)
    sanitized.token_recover_with_importance_backward(x, importance, index, 1, 0.5)


def test_order_of_threads_changes_nothing(emulator) -> None:
    def results(emulator: Emulator) -> list[Tensor]:
        tokens, index = emulator.token_shrink(x, importance, 60, None)
        gradients = emulator.token_shrink_backward(dtokens, x, importance, index)
        recovered = emulator.token_recover_with_importance(
            x, index, tokens[:, :-1], tokens[:, -1:], importance, importance[:, :63], 0.3
        )
        back = emulator.token_recover_with_importance_backward(x, importance, index, 2, 0.3)
        return [tokens, index, *gradients, *recovered, *back]

    x, dtokens = draw(2, 150, 72, dtype=torch.bfloat16), draw(2, 61, 72, dtype=torch.bfloat16)
    importance = torch.randint(20, (2, 150)) / 20
    for one, other in zip(results(emulator), results(backwards(emulator)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sanitized(sanitized, dtype) -> None:
    hold(sanitized, (2, 40, 72), 13, 1, dtype)
    hold(sanitized, (1, 21, 5), 20, 0, dtype)
    hold_running_mean(sanitized, (2, 70, 5), 69, 2, dtype)


# The checks themselves


def checked(emulator: Emulator) -> None:
    """Calls that meet every barrier."""
    hold(emulator, (1, 300, 72), 150, 1, torch.float32)
    assert kept_of(emulator, [1.0] * 9, 4) == [0, 1, 2, 3]


def checked_running_mean(emulator: Emulator) -> None:
    hold_running_mean(emulator, (2, 40, 8), 13, 2)
    hold_running_mean(emulator, (2, 40, 8), 39, 0, trade_off=0.3)


def test_nothing_is_noticed_where_nothing_is_wrong(emulator) -> None:
    assert notices_nothing(checked, emulator)
    assert notices_nothing(checked_running_mean, emulator)


@pytest.mark.parametrize("barrier", barriers("token_select_kernel.cuh"))
def test_no_barrier_may_be_missing(emulator, barrier) -> None:
    assert notices_missing(barrier, checked, emulator)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("keys[n] == least && equal++ < room", "keys[n] == least && equal++ < room - 1"),
        (
            "n < end; n += kWarps) {\n    const bool kept",
            "n < end - 1; n += kWarps) {\n    const bool kept",
        ),
        ("if (lane >= distance) sum += below;", "sum += below;"),
        ("slope += lane_across(slope, distance);", "slope += lane_across(slope, 1);"),
    ],
    ids=["one less of the equal ones", "one token less", "prefix sum", "sum of a warp"],
)
def test_wrong_sources_are_noticed(emulator, before, after, tmp_path: Path) -> None:
    file, compiled = "token_select_kernel.cuh", "token_select_kernel.float"
    assert notices_change(checked, emulator, tmp_path, file, before, after, compiled=compiled)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("s.N - s.K == 1 ? s.P + s.K : -1", "-1"),
        ("fmaf(weight - 1.f, whole, end)", "fmaf(weight, whole, end)"),
        ("at < 0 ? up : up * p.rest", "up * p.rest"),
        (
            "i < s.P; i += kTokenThreads) dscore[i] = 0.f",
            "i < s.P - 1; i += kTokenThreads) dscore[i] = 0.f",
        ),
        ("if (s.N - s.K != 1 && thread_index() == 0) dscore[s.P + s.K] = 0.f;", ""),
    ],
    ids=["a single other token", "lerp", "others' gradients", "in front", "the representative's"],
)
def test_a_wrong_running_mean_is_noticed(emulator, before, after, tmp_path: Path) -> None:
    file, compiled = "token_select_kernel.cuh", "token_select_kernel.float"
    checks = checked_running_mean, emulator, tmp_path, file, before, after
    assert notices_change(*checks, compiled=compiled)
