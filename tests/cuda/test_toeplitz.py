"""The convolution as matrix products, run on this processor."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.contract import draw, evaluate, within
from tests.cuda.emulator import (
    SANITIZED,
    EmulationError,
    Emulator,
    barriers,
    build,
    changed,
    kept_build,
)
from uniformer_kernels import reference

DTYPES = [torch.bfloat16, torch.float16]
CALLS = [  # shape, frames of the kernel
    ((1, 1, 1, 1, 8), 5),
    ((2, 3, 5, 6, 24), 5),  # a block of channels and a half
    ((1, 2, 17, 9, 16), 1),
    ((1, 9, 4, 30, 8), 5),  # two chunks of frames, two blocks across
    ((1, 4, 20, 28, 16), 5),  # 35 tiles, two blocks down
]


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    return kept_build("plain")


@pytest.fixture(scope="session")
def sanitized() -> Emulator:
    return kept_build("sanitized", SANITIZED)


def hold(
    emulator: Emulator,
    shape: tuple[int, ...],
    frames: int,
    dtype: torch.dtype,
    *,
    residual: bool = True,
    flip: bool = False,
    architecture: int = 90,
) -> None:
    """One call against the numerical contract."""
    x, weight = draw(*shape, dtype=dtype), draw(shape[-1], 1, frames, 5, 5, dtype=dtype)
    bias = draw(shape[-1], dtype=dtype)
    options = {"residual": residual, "by": "toeplitz", "architecture": architecture}
    got, _ = emulator.forward(x, weight, bias, flip=flip, **options)
    taps = weight.flip(2, 3, 4) if flip else weight
    inputs = {"x": x, "weight": taps, "bias": bias}
    plain = partial(reference.depthwise_conv3d, residual=residual)
    same = evaluate(plain, inputs, needs=())["output"]
    exact = evaluate(plain, {n: t.double() for n, t in inputs.items()}, needs=())["output"]
    within("output", got, [same], exact, reduction=weight[0].numel())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "frames"), CALLS, ids=str)
def test_values(emulator, shape, frames, dtype) -> None:
    hold(emulator, shape, frames, dtype)


def test_input_gradient_and_less_memory(emulator) -> None:
    hold(emulator, (1, 3, 9, 10, 8), 5, torch.bfloat16, residual=False, flip=True)
    hold(emulator, (1, 8, 13, 9, 8), 5, torch.bfloat16, architecture=86)


def test_every_tap_and_position(emulator) -> None:
    """Exactly: small integers, no product or sum of which is rounded."""
    x = torch.randint(-4, 5, (1, 6, 9, 11, 8)).to(torch.bfloat16)
    weight = torch.randint(-1, 2, (8, 1, 5, 5, 5)).to(torch.bfloat16)
    x[torch.rand(x.shape) < 0.8] = 0  # sums stay below 256
    got, _ = emulator.forward(x, weight, by="toeplitz")
    want = reference.depthwise_conv3d(x.double(), weight.double(), None)
    assert want.abs().max() <= 256
    assert torch.equal(got.double(), want)


def test_order_of_threads_changes_nothing(emulator) -> None:
    x, weight = (draw(*s, dtype=torch.bfloat16) for s in ((1, 4, 9, 9, 24), (24, 1, 5, 5, 5)))
    one, _ = emulator.forward(x, weight, by="toeplitz")
    backwards = replace(emulator, environment={"UK_REVERSED": "1"})
    assert torch.equal(one, backwards.forward(x, weight, by="toeplitz")[0])


def test_sanitized(sanitized) -> None:
    hold(sanitized, (2, 3, 5, 33, 24), 5, torch.bfloat16)
    hold(sanitized, (1, 2, 7, 3, 8), 1, torch.float16)


# The checks themselves


def noticed(emulator: Emulator) -> bool:
    """Whether calls that meet every barrier go wrong."""
    try:
        for dtype in DTYPES:
            hold(emulator, (1, 3, 13, 12, 16), 5, dtype)
    except (AssertionError, EmulationError):
        return True
    return False


def test_nothing_is_noticed_where_nothing_is_wrong(emulator) -> None:
    assert not noticed(emulator)


@pytest.mark.parametrize("barrier", barriers("toeplitz_kernel.cuh"))
def test_no_barrier_may_be_missing(emulator, barrier) -> None:
    without = {"UK_SKIP_BARRIER": barrier}
    assert noticed(replace(emulator, environment=without)) or noticed(
        replace(emulator, environment=without | {"UK_REVERSED": "1"})
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a[1] = word(f, 2 * s - 2);", "a[1] = word(f, 2 * s - 1);"),
        ("w = place.w - kTaps / 2 + 2 * pair;", "w = place.w - kTaps / 2 + 2 * pair + 1;"),
        ("const int out = t - k + KT / 2;", "const int out = t - k + KT / 2 + 1;"),
        ("min(first + lane / 4, tiles - 1)", "min(first + lane / 4 + 1, tiles - 1)"),
    ],
    ids=["band", "column", "frame", "tile"],
)
def test_wrong_sources_are_noticed(emulator, before, after, tmp_path: Path) -> None:
    sources = changed(tmp_path / "csrc", "toeplitz_kernel.cuh", before, after)
    assert noticed(build(tmp_path / "build", (), sources, emulator, "depthwise_conv_kernel.bf16"))
