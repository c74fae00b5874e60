"""Frames staged by TMA, run on this processor, and the model of its copies and barriers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.contract import draw, evaluate
from tests.cuda.checks import (
    DTYPES,
    backwards,
    hold_convolution,
    notices_change,
    notices_missing,
    notices_nothing,
)
from tests.cuda.emulator import EmulationError, Emulator, barriers
from uniformer_kernels import reference

CALLS = [  # shape, kernel: tiles of 7 and of 5 columns, one and more of everything
    ((1, 1, 1, 1, 8), (3, 3, 3)),
    ((2, 3, 5, 6, 24), (3, 3, 3)),
    ((1, 1, 7, 7, 56), (1, 3, 3)),  # an image, channels beside those of a box
    ((2, 5, 3, 15, 8), (3, 1, 1)),
    ((1, 2, 9, 9, 24), (5, 5, 5)),  # fewer frames than the kernel
    ((1, 3, 5, 16, 40), (5, 5, 5)),  # channels of the next block in a box
    ((1, 8, 4, 3, 8), (7, 3, 3)),
    ((2, 6, 9, 16, 72), (3, 3, 3)),  # several blocks along every axis
]
hold = partial(hold_convolution, by="tma")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "kernel"), CALLS, ids=str)
def test_values_and_gradients(emulator, shape, kernel, dtype) -> None:
    hold(emulator, shape, kernel, dtype)


def test_copies_that_arrive_at_once(emulator) -> None:
    for shape, kernel in CALLS:
        hold(backwards(emulator), shape, kernel, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits(emulator, dtype) -> None:
    """As of frames that all threads stage: the sums are the same ones."""
    x, dy = draw(2, 4, 9, 9, 24, dtype=dtype), draw(2, 4, 9, 9, 24, dtype=dtype)
    for kernel in ((3, 3, 3), (5, 5, 5)):
        weight = draw(24, 1, *kernel, dtype=dtype)
        one, other = (
            [
                *emulator.forward(x, weight, moments=True, by=by),
                *emulator.weight_gradient(dy, x, weight, by=by),
            ]
            for by in ("tiles", "tma")
        )
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype"),
    [
        ((1, 2, 5, 6, 12), (3, 3, 3), torch.bfloat16),  # not 16 bytes
        ((1, 2, 5, 6, 8), (3, 5, 7), torch.half),  # no tiles
    ],
    ids=str,
)
def test_what_tma_cannot_do(emulator, shape, kernel, dtype) -> None:
    """Other kernels do."""
    hold(emulator, shape, kernel, dtype, moments=kernel[1] == kernel[2])


def on_an_older_gpu(emulator: Emulator) -> None:
    hold(emulator, (2, 3, 5, 6, 24), (3, 3, 3), torch.bfloat16, architecture=80)


def test_older_gpus(emulator, tmp_path: Path) -> None:
    """Threads stage the frames there, as the kernels by TMA would fail."""
    on_an_older_gpu(emulator)
    change = "depthwise_conv_kernel.cu", ">= 90", ">= 80"
    compiled = "depthwise_conv_kernel.bf16"
    assert notices_change(on_an_older_gpu, emulator, tmp_path, *change, compiled=compiled)


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype"),
    [
        ((2, 3, 5, 6, 24), (3, 3, 3), torch.bfloat16),
        ((1, 3, 5, 16, 40), (5, 5, 5), torch.float32),
    ],
    ids=str,
)
def test_sanitized(sanitized, shape, kernel, dtype) -> None:
    """No thread touches what a copy is to write."""
    hold(sanitized, shape, kernel, dtype)
    hold(backwards(sanitized), shape, kernel, dtype)


# The model of the machine


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_boxes(emulator, dtype) -> None:
    """Zeros beside the map, on every side of it."""
    x = draw(2, 3, 4, 5, 24, dtype=dtype)
    part = draw(3, 3, 6, 5, 40, dtype=dtype)[1:, :, 1:5, :, 8:32]
    for t in (x, part):
        padded = F.pad(t, (16, 16, 3, 3, 3, 3, 3, 3, 3, 3))
        for start in ((0, 0, 0, 0, 0), (1, -1, -2, -3, -8), (-1, 1, 2, 3, 16), (1, 3, 1, -9, 8)):
            box = (2, 1, 3, 4, 16)
            got = emulator.tensor_copies(t, box, start, steps=3)
            for step, one in enumerate(got):
                at = [start[0], start[1] + step, *start[2:]]
                want = padded
                for axis, (first, length) in enumerate(zip(at, box, strict=True)):
                    index = torch.arange(first, first + length) + (16 if axis == 4 else 3)
                    size = padded.shape[axis]
                    index = index.where((index >= 0) & (index < size), 0)  # where there are zeros
                    want = want.index_select(axis, index)
                assert torch.equal(one, want)


def copies(emulator: Emulator, fault: str = "None") -> None:
    x = draw(1, 4, 3, 3, 8)
    got = emulator.tensor_copies(x, (1, 1, 3, 3, 8), (0, 0, 0, 0, 0), 4, fault)
    assert torch.equal(got.flatten(), x.flatten())


def test_copies_that_are_right(emulator, sanitized) -> None:
    for build in (emulator, sanitized):
        assert notices_nothing(copies, build)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("NoCopy", r"all threads wait: .*copies.cpp:\d+, for phase 0 of the barrier at byte 8"),
        ("NoCopy", "lacks 0 arrivals and 288 bytes"),
        ("OtherParity", "two copies under way to the same place"),
        ("NoExpectation", "two copies under way to the same place"),
        ("TooFewBytes", "more bytes arrive than are expected"),
        ("TooManyBytes", "lacks 0 arrivals and 16 bytes"),
        ("Unaligned", "at a multiple of 128 bytes"),
        ("Beside", "expected a box in shared memory"),
        ("BegunTwice", "begun once more"),
        ("NotBegun", "expected a barrier that was begun at byte 8"),
        ("NoFence", "copies do not know of the barrier"),
        ("NoFenceBehindStore", "threads wrote, with no fence behind, where a copy writes"),
        ("StoreUnderWay", "threads wrote where a copy was under way"),
        ("NotAwaited", "ends with a copy under way"),
        ("ArrivedTwice", "more arrivals than the barrier counts"),
        ("Overwritten", "somebody wrote over the barrier at byte 0"),
    ],
    ids=str,
)
def test_misuse_is_told(emulator, fault, message) -> None:
    with pytest.raises(EmulationError, match=message):
        copies(emulator, fault)


def test_misuse_gives_other_numbers(emulator) -> None:
    """A slot that is filled while threads need it is NaN to them."""
    with pytest.raises(AssertionError):
        copies(emulator, "SlotInUse")


def test_the_sanitizer_lets_nobody_touch_what_a_copy_writes(sanitized) -> None:
    for fault in ("OtherParity", "SlotInUse", "StoreUnderWay"):
        with pytest.raises(EmulationError, match="use-after-poison"):
            copies(sanitized, fault)


# The checks themselves


def checked(emulator: Emulator) -> None:
    """Calls that meet every barrier, with more positions than blocks in the last one."""
    for shape, kernel in [((1, 2, 5, 8, 8), (1, 3, 3)), ((1, 6, 5, 8, 8), (3, 3, 3))]:
        hold(emulator, shape, kernel, torch.float32)
    many, weight = draw(17, 1, 5, 3, 512), draw(512, 1, 1, 3, 3)
    dw, _ = emulator.weight_gradient(many, many, weight, by="tma")
    want = evaluate(
        reference.depthwise_conv3d, {"x": many, "weight": weight}, upstream=lambda _: many
    )
    torch.testing.assert_close(dw, want["weight"], rtol=1e-4, atol=1e-3)


# The last one of the file is that of the general kernel.
BARRIERS = barriers("staging.cuh") + barriers("depthwise_conv_kernel.cuh")[:-1]


def test_nothing_is_noticed_where_nothing_is_wrong(emulator) -> None:
    assert len(BARRIERS) >= 8
    assert notices_nothing(checked, emulator)


@pytest.mark.parametrize("barrier", BARRIERS)
def test_no_barrier_may_be_missing(emulator, barrier) -> None:
    assert notices_missing(barrier, checked, emulator)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("step / kSlots % 2);", "(step / kSlots + 1) % 2);"),
        ("    expect_bytes(", "    if (t != 1) expect_bytes("),
        ("    copy_box(", "    if (t != 1) copy_box("),
    ],
    ids=["parity", "expectation", "copy"],
)
def test_wrong_sources_are_noticed(emulator, before, after, tmp_path: Path) -> None:
    compiled = "depthwise_conv_kernel.float"
    change = "staging.cuh", before, after
    assert notices_change(checked, emulator, tmp_path, *change, compiled=compiled)
