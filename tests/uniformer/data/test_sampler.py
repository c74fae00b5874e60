"""Every video once in an epoch, whatever the number of processes, from wherever it goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniformer.data import ResumableSampler

SMALL = st.integers(1, 40)


def _epoch(epoch: int, *args: int, start: int = 0, **keywords: int | bool) -> list[tuple[int, int]]:
    sampler = ResumableSampler(*args, **keywords)
    sampler.set_epoch(epoch, start)
    keys = list(sampler)
    assert len(sampler) == len(keys)
    return keys


@given(SMALL, st.integers(1, 9))
def test_processes_share_an_epoch(length: int, world: int) -> None:
    parts = [_epoch(0, length, training=True, rank=r, world_size=world) for r in range(world)]
    assert {len(part) for part in parts} == {-(-length // world)}
    taken = [parts[i % world][i // world][1] for i in range(length)]
    assert sorted(taken) == list(range(length))  # before any is repeated

    parts = [_epoch(0, length, training=False, rank=r, world_size=world) for r in range(world)]
    assert sorted(index for part in parts for _, index in part) == list(range(length))
    assert [parts[i % world][i // world][1] for i in range(length)] == list(range(length))


@given(SMALL, st.integers(0, 40), st.booleans())
def test_an_epoch_goes_on_where_it_was_left(length: int, start: int, training: bool) -> None:
    start = min(start, length)
    whole = _epoch(3, length, training=training)
    assert _epoch(3, length, training=training, start=start) == whole[start:]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    orders = [
        tuple(index for _, index in _epoch(epoch, 20, training=True, seed=seed))
        for epoch, seed in [(0, 0), (1, 0), (0, 7), (1, 7)]
    ]
    assert len(set(orders)) == 4
    assert _epoch(1, 20, training=True) == [(1, index) for index in orders[1]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"length": 0}, "length: expected at least 1, got 0"),
        ({"world_size": 0}, "world_size: expected at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, "rank: expected 0 <= rank < 2, got 2"),
    ],
)
def test_bad_arguments(bad: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResumableSampler(**{"length": 3, "training": True} | bad)


def test_there_is_no_such_place() -> None:
    sampler = ResumableSampler(5, training=True, world_size=2)
    with pytest.raises(ValueError, match="start: expected 0 <= start <= 3, got 4"):
        sampler.set_epoch(0, 4)
    with pytest.raises(ValueError, match="epoch: expected at least 0, got -1"):
        sampler.set_epoch(-1)
