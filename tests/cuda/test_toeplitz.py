"""The convolution as matrix products, run on this processor."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.contract import draw, evaluate
from tests.cuda.checks import (
    backwards,
    hold_convolution,
    notices_change,
    notices_missing,
    notices_nothing,
)
from tests.cuda.emulator import Emulator, barriers
from uniformer_kernels import reference

DTYPES = [torch.bfloat16, torch.float16]
CALLS = [  # shape, frames of the kernel
    ((1, 1, 1, 1, 8), 5),
    ((2, 3, 5, 6, 24), 5),  # a block of channels and a half
    ((1, 2, 17, 9, 16), 1),
    ((1, 9, 4, 30, 8), 5),  # two chunks of frames, two blocks across
    ((1, 4, 20, 28, 16), 5),  # 35 tiles, two blocks down
    ((3, 1, 9, 41, 8), 1),  # two blocks across of the weight gradient
]
MODELS = [56, 64, 112, 128]  # channels where their kernels have 5 x 5 taps
hold = partial(hold_convolution, by="toeplitz")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "frames"), CALLS, ids=str)
def test_values_and_gradients(emulator, shape, frames, dtype) -> None:
    hold(emulator, shape, (frames, 5, 5), dtype)


@pytest.mark.parametrize("C", MODELS)
def test_channels_of_the_models(emulator, C) -> None:
    hold(emulator, (1, 2, 3, 5, C), (5, 5, 5), torch.bfloat16, residual=False)


def test_less_memory(emulator) -> None:
    """Of sm_86: fewer tiles a block; of none, for either or for both, the general kernels serve."""
    hold(emulator, (1, 8, 13, 9, 8), (5, 5, 5), torch.bfloat16, architecture=86)
    hold(emulator, (1, 12, 5, 28, 8), (5, 5, 5), torch.bfloat16, architecture=86)
    hold(emulator, (1, 3, 5, 6, 8), (5, 5, 5), torch.half, moments=False, architecture=75)


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype"),
    [
        ((1, 2, 5, 6, 12), (5, 5, 5), torch.bfloat16),  # not 16 bytes
        ((1, 2, 5, 6, 8), (5, 5, 5), torch.float32),
        ((1, 2, 5, 6, 8), (3, 5, 5), torch.half),
        ((1, 2, 5, 6, 8), (3, 5, 7), torch.half),
    ],
    ids=str,
)
def test_what_products_cannot_do(emulator, shape, kernel, dtype) -> None:
    """Other kernels do."""
    hold(emulator, shape, kernel, dtype, moments=kernel[1] == kernel[2])


def integers(*shape: int, to: int, share: float = 1.0) -> torch.Tensor:
    """Small ones, a share of which is not zero."""
    drawn = torch.randint(-to, to + 1, shape).where(torch.rand(shape) < share, 0)
    return drawn.to(torch.bfloat16)


def test_every_tap_and_position(emulator) -> None:
    """Exactly: small integers, no product or sum of which is rounded."""
    x, weight = integers(1, 6, 9, 11, 8, to=4, share=0.2), integers(8, 1, 5, 5, 5, to=1)
    dy = integers(1, 6, 9, 11, 8, to=1, share=0.2)
    want = evaluate(
        reference.depthwise_conv3d,
        {"x": x.double(), "weight": weight.double(), "bias": torch.zeros(8).double()},
        upstream=lambda _: dy.double(),
    )
    assert max(t.abs().max() for t in want.values()) <= 256
    got, _ = emulator.forward(x, weight, by="toeplitz")
    assert torch.equal(got.double(), want["output"])
    dx, _ = emulator.forward(dy, weight, flip=True, by="toeplitz")
    assert torch.equal(dx.double(), want["x"])
    dw, db = emulator.weight_gradient(dy, x, weight, by="toeplitz")
    assert torch.equal(dw.double(), want["weight"])
    assert torch.equal(db.double(), want["bias"])


def test_blocks_have_one_position_after_another(emulator) -> None:
    """More of them than blocks: of 520 channels there are three parts."""
    x, dy = integers(4, 1, 2, 3, 520, to=1), integers(4, 1, 2, 3, 520, to=1)
    weight = integers(520, 1, 1, 5, 5, to=1)
    inputs = {"x": x.double(), "weight": weight.double()}
    want = evaluate(reference.depthwise_conv3d, inputs, upstream=lambda _: dy.double())
    dw, db = emulator.weight_gradient(dy, x, weight, by="toeplitz")
    assert torch.equal(dw.double(), want["weight"])
    assert torch.equal(db.double(), dy.double().sum((0, 1, 2, 3)))


def test_order_of_threads_changes_nothing(emulator) -> None:
    """Bit for bit."""
    x, dy = (draw(1, 4, 9, 9, 24, dtype=torch.bfloat16) for _ in range(2))
    weight = draw(24, 1, 5, 5, 5, dtype=torch.bfloat16)

    def results(emulator: Emulator) -> list[torch.Tensor]:
        return [
            *emulator.forward(x, weight, moments=True, by="toeplitz"),
            *emulator.weight_gradient(dy, x, weight, by="toeplitz"),
        ]

    for one, other in zip(results(emulator), results(backwards(emulator)), strict=True):
        assert torch.equal(one, other)


def test_sanitized(sanitized) -> None:
    hold(sanitized, (2, 3, 5, 33, 24), (5, 5, 5), torch.bfloat16)
    hold(sanitized, (1, 2, 7, 3, 8), (1, 5, 5), torch.float16)


# The checks themselves

KERNELS = ["toeplitz_kernel.cuh", "toeplitz_gradient_kernel.cuh"]
_OBJECT = "depthwise_conv_kernel.bf16"


def checked(emulator: Emulator) -> None:
    """A call with more tiles than a product, and fewer."""
    hold(emulator, (1, 3, 9, 11, 16), (5, 5, 5), torch.bfloat16)


def checked_with_every_barrier(emulator: Emulator) -> None:
    checked(emulator)
    test_blocks_have_one_position_after_another(emulator)


def test_nothing_is_noticed_where_nothing_is_wrong(emulator) -> None:
    assert notices_nothing(checked_with_every_barrier, emulator)


@pytest.mark.parametrize("barrier", [b for kernel in KERNELS for b in barriers(kernel)])
def test_no_barrier_may_be_missing(emulator, barrier) -> None:
    assert notices_missing(barrier, checked_with_every_barrier, emulator)


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        (0, "a[1] = word(f, 2 * s - 2);", "a[1] = word(f, 2 * s - 1);"),
        (0, "place.w - plane.around +", "place.w - plane.around + 1 +"),
        (0, "const int out = t - k + KT / 2;", "const int out = t - k + KT / 2 + 1;"),
        (0, "min(first + lane / 4, tiles - 1)", "min(first + lane / 4 + 1, tiles - 1)"),
        (0, "place.w + w < s.W) {", "place.w + w <= s.W) {"),
        (1, "output / kTile + tap / kTaps", "output / kTile + tap / kTaps + 1"),
        (1, "output % kTile + tap % kTaps", "output % kTile - tap % kTaps + 4"),
        (1, "inside[i] = word == own;", "inside[i] = true;"),
        (1, "bits = 4; bits < 32", "bits = 8; bits < 32"),
    ],
    ids=[
        *("band", "column", "frame", "tile", "moments"),
        *("offset down", "offset across", "words", "bias"),
    ],
)
def test_wrong_sources_are_noticed(emulator, file, before, after, tmp_path: Path) -> None:
    change = KERNELS[file], before, after
    assert notices_change(checked, emulator, tmp_path, *change, compiled=_OBJECT)
