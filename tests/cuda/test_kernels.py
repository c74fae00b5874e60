"""The kernels' own sources, run on this processor: values, memory, barriers.

What only a GPU can show, its scheduling and its instructions, is in tests/gpu.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.contract import draw, evaluate
from tests.cuda.checks import (
    DTYPES,
    backwards,
    notices_change,
    notices_missing,
    notices_nothing,
)
from tests.cuda.checks import hold_convolution as hold
from tests.cuda.emulator import SANITIZED, EmulationError, Emulator, barriers, build, changed
from uniformer_kernels import reference

CALLS = [  # shape, kernel: tiles of 7 and of 5 columns, one and more of everything
    ((1, 1, 1, 1, 1), (3, 3, 3)),
    ((2, 3, 5, 6, 17), (3, 3, 3)),  # odd channels: staged one by one
    ((1, 1, 7, 7, 56), (1, 3, 3)),  # an image
    ((2, 5, 3, 15, 8), (3, 1, 1)),
    ((1, 2, 9, 9, 24), (5, 5, 5)),  # fewer frames than the kernel
    ((1, 3, 5, 16, 40), (5, 5, 5)),
    ((1, 6, 2, 3, 8), (1, 5, 5)),
    ((1, 8, 4, 3, 8), (7, 3, 3)),
    ((1, 2, 3, 4, 5), (3, 5, 7)),  # no tiles
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "kernel"), CALLS, ids=str)
def test_values_and_gradients(emulator, shape, kernel, dtype) -> None:
    tiled = kernel[1] == kernel[2]
    hold(emulator, shape, kernel, dtype, **({} if tiled else {"by": "general"}))


def test_several_blocks_along_every_axis(emulator) -> None:
    hold(emulator, (2, 6, 9, 16, 72), (3, 3, 3), torch.bfloat16)
    hold(emulator, (1, 11, 10, 11, 40), (5, 5, 5), torch.bfloat16, residual=False)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5), (1, 1, 7)], ids=str)
def test_general_kernels(emulator, kernel) -> None:
    for dtype in DTYPES:
        hold(emulator, (2, 3, 4, 5, 35), kernel, dtype, by="general")


def test_less_shared_memory(emulator) -> None:
    """Of sm_86: a weight gradient that reaches seven frames takes the general kernel there."""
    hold(emulator, (1, 3, 4, 5, 8), (7, 5, 5), torch.float32, architecture=86)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5)], ids=str)
def test_too_little_shared_memory(emulator, kernel) -> None:
    """For every kernel but the general ones."""
    hold(emulator, (2, 3, 4, 7, 16), kernel, torch.bfloat16, moments=False, architecture=75)


def channels_first(t: Tensor) -> Tensor:
    return t.movedim(-1, 1).contiguous().movedim(1, -1)


def shifted(t: Tensor) -> Tensor:
    """Behind other numbers, so that no 16 bytes begin at a multiple of them."""
    room = torch.full((*t.shape[:-1], t.shape[-1] + 16), float("nan"), dtype=t.dtype)
    return room[..., 3:-13].copy_(t)


def aligned_part(t: Tensor) -> Tensor:
    room = torch.full((*t.shape[:-1], t.shape[-1] + 16), float("nan"), dtype=t.dtype)
    return room[..., 8:-8].copy_(t)


def expanded(t: Tensor) -> Tensor:
    """One number everywhere, as the gradient of a sum is."""
    return t[:1, :1, :1, :1, :1].expand(t.shape)


def one_frame(t: Tensor) -> Tensor:
    """Again and again, and 16 bytes of it can be read at once."""
    return t[:, :1].expand(t.shape)


def flipped_axes(t: Tensor) -> Tensor:
    return t.permute(3, 1, 0, 2, 4).contiguous().permute(2, 1, 3, 0, 4)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(
    "layout",
    [channels_first, shifted, aligned_part, expanded, one_frame, flipped_axes],
    ids=lambda f: f.__name__,
)
def test_layouts(emulator, layout, dtype) -> None:
    hold(emulator, (2, 2, 5, 6, 16), (3, 3, 3), dtype, layout)
    hold(emulator, (2, 2, 5, 6, 16), (5, 5, 5), dtype, layout, by="toeplitz")
    hold(emulator, (2, 2, 5, 6, 16), (3, 3, 3), dtype, layout, by="tma")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_order_of_threads_changes_nothing(emulator, dtype) -> None:
    """Bit for bit: no result depends on which thread comes first."""
    x, dy = draw(2, 4, 5, 9, 24, dtype=dtype), draw(2, 4, 5, 9, 24, dtype=dtype)
    weight = draw(24, 1, 3, 3, 3, dtype=dtype)

    def results(emulator: Emulator) -> list[Tensor]:
        forward = emulator.forward(x, weight, moments=True)
        return [*forward, *emulator.weight_gradient(dy, x, weight)]

    for one, other in zip(results(emulator), results(backwards(emulator)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding(emulator, dtype) -> None:
    """Ties to even, overflow and numbers that are none, as PyTorch converts."""
    info = torch.finfo(dtype)
    values = [1.0, 1 + info.eps, 1 + 3 * info.eps, info.tiny, info.max, float("inf"), float("nan")]
    x = torch.tensor(values, dtype=dtype)[None, None, None, :, None]
    for factor in (1.0, 1 + info.eps, 0.75, -2.0):
        weight = torch.full((1, 1, 1, 1, 1), factor, dtype=dtype)
        want = (x.float() * weight.float()).to(dtype)
        got, _ = emulator.forward(x, weight)
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shifted_", [False, True], ids=["plain", "shifted"])
def test_moments_of_rows(emulator, shifted_, dtype) -> None:
    x, dy, dmoments = draw(70, 41, dtype=dtype), draw(70, 41, dtype=dtype), draw(2, 41)
    shift = draw(41) if shifted_ else None
    wide = None if shift is None else shift.double()
    want = reference.moments(x.double(), shift=wide)
    torch.testing.assert_close(emulator.moments(x, shift).double(), want, rtol=1e-5, atol=1e-4)
    centred = x.double() - (0 if wide is None else wide)
    for own in (None, dy):
        got = emulator.moments_backward(own, x, shift, dmoments)
        want = (0 if own is None else own.double()) + dmoments[0] + 2 * centred * dmoments[1]
        torch.testing.assert_close(got.double(), want, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype"),
    [
        ((2, 3, 5, 6, 17), (3, 3, 3), torch.bfloat16),
        ((1, 2, 5, 8, 40), (5, 5, 5), torch.bfloat16),
        ((1, 2, 5, 8, 24), (5, 5, 5), torch.float32),
        ((1, 5, 3, 16, 8), (3, 1, 1), torch.float16),
    ],
    ids=str,
)
def test_sanitized(sanitized, shape, kernel, dtype) -> None:
    hold(sanitized, shape, kernel, dtype)
    hold(sanitized, shape, kernel, dtype, by="general")


# The checks themselves


def checked(emulator: Emulator) -> None:
    """Calls that meet every barrier.

    With one frame to a block, the moments are written where it lay; with more positions than
    blocks, a block of the weight gradient has one after another.
    """
    for shape, kernel in [((1, 2, 5, 8, 8), (1, 3, 3)), ((1, 6, 5, 8, 8), (3, 3, 3))]:
        hold(emulator, shape, kernel, torch.float32)
    hold(emulator, (1, 2, 5, 8, 8), (3, 3, 3), torch.float32, by="general")
    many, weight = draw(17, 1, 5, 3, 512), draw(512, 1, 1, 3, 3)
    dw, _ = emulator.weight_gradient(many, many, weight)
    want = evaluate(
        reference.depthwise_conv3d, {"x": many, "weight": weight}, upstream=lambda _: many
    )
    torch.testing.assert_close(dw, want["weight"], rtol=1e-4, atol=1e-3)
    test_moments_of_rows(emulator, True, torch.float32)


BARRIERS = barriers("depthwise_conv_kernel.cuh") + barriers("sums_kernel.cuh")


def test_nothing_is_noticed_where_nothing_is_wrong(emulator) -> None:
    assert len(BARRIERS) >= 10
    assert notices_nothing(checked, emulator)


@pytest.mark.parametrize("barrier", BARRIERS)
def test_no_barrier_may_be_missing(emulator, barrier) -> None:
    assert notices_missing(barrier, checked, emulator)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("h = place.h - K / 2;", "h = place.h - K / 2 + 1;"),
        ("w = place.w - K / 2;", "w = place.w - K / 2 - 1;"),
        ("await_copies<AHEAD - 1>();", "await_copies<AHEAD>();"),
    ],
    ids=["row", "column", "await"],
)
def test_wrong_sources_are_noticed(emulator, before, after, tmp_path: Path) -> None:
    """A halo that is off by one, a copy that is not awaited."""
    file, compiled = "staging.cuh", "depthwise_conv_kernel.float"
    assert notices_change(checked, emulator, tmp_path, file, before, after, compiled=compiled)


def test_reading_beside_the_map_is_noticed(sanitized, tmp_path: Path) -> None:
    before, after = "(h + row) < sizes.H", "(h + row) <= sizes.H"
    sources = changed(tmp_path / "csrc", "staging.cuh", before, after)
    beyond = build(tmp_path / "build", SANITIZED, sources, sanitized, "depthwise_conv_kernel.float")
    with pytest.raises(EmulationError, match="heap-buffer-overflow"):
        beyond.forward(draw(1, 1, 5, 5, 8), draw(8, 1, 3, 3, 3))
