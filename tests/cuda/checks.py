"""What is asked of every kernel that runs on this processor, and of the asking itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tests.contract import draw, evaluate, within, without_onednn
from tests.cuda.emulator import EmulationError, Emulator, build, changed
from uniformer_kernels import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def compare(
    plain: Callable[..., Tensor],
    inputs: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    dy: Tensor,
    reduction: int,
) -> None:
    """Output and every gradient against the numerical contract."""
    doubles = {name: t.double() for name, t in inputs.items()}
    with without_onednn():  # whose gradients of bfloat16 may be none, and allow anything then
        same = evaluate(plain, inputs, upstream=lambda _: dy)
    exact = evaluate(plain, doubles, upstream=lambda _: dy.double())
    assert all(t.isfinite().all() for t in same.values())
    for name, want in exact.items():
        within(name, got[name], [same[name]], want, reduction=reduction)


def hold_convolution(
    emulator: Emulator,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor] = Tensor.contiguous,
    *,
    residual: bool = True,
    moments: bool = True,
    **options: int | str,
) -> None:
    """Output, moments and every gradient of one call; general kernels leave moments to another."""
    *positions, C = shape
    inputs = {
        "x": layout(draw(*shape, dtype=dtype)),
        "weight": draw(C, 1, *kernel, dtype=dtype),
        "bias": draw(2 * C, dtype=dtype)[::2],
    }
    dy, shift = layout(draw(*shape, dtype=dtype)), draw(C)
    x, weight, bias = inputs.values()
    y, found = emulator.forward(
        x, weight, bias, residual=residual, moments=moments, shift=shift, **options
    )
    dx, _ = emulator.forward(dy, weight, residual=residual, flip=True, **options)
    dw, db = emulator.weight_gradient(dy, x, weight, **options)
    compare(
        partial(reference.depthwise_conv3d, residual=residual),
        inputs,
        {"output": y, "x": dx, "weight": dw, "bias": db},
        dy,
        reduction=max(torch.Size(positions).numel(), torch.Size(kernel).numel()),
    )
    if moments and options.get("by") != "general":
        want = reference.moments(y.double(), shift=shift.double())
        torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-3)


def backwards(emulator: Emulator) -> Emulator:
    """The same with every block's threads in the opposite order."""
    return replace(emulator, environment=emulator.environment | {"UK_REVERSED": "1"})


# Of the checks themselves: a check raises where calls go wrong.

Check = Callable[[Emulator], None]


def noticed(check: Check, emulator: Emulator) -> bool:
    try:
        check(emulator)
    except (AssertionError, EmulationError):
        return True
    return False


def notices_nothing(check: Check, emulator: Emulator) -> bool:
    """Where nothing is wrong, in either order of the threads."""
    return not noticed(check, emulator) and not noticed(check, backwards(emulator))


def notices_missing(barrier: str, check: Check, emulator: Emulator) -> bool:
    """In one of the two orders at least."""
    without = replace(emulator, environment={"UK_SKIP_BARRIER": barrier})
    return noticed(check, without) or noticed(check, backwards(without))


def notices_change(
    check: Check,
    emulator: Emulator,
    folder: Path,
    file: str,
    before: str,
    after: str,
    *,
    compiled: str,
) -> bool:
    """Whether sources that are wrong in one place are told from the right ones.

    ``compiled`` is the one object that the check runs, such as ``"sums_kernel.float"``.
    """
    sources = changed(folder / "csrc", file, before, after)
    once = ("-O0",)  # it runs once, and compiles in a third of the time
    return noticed(check, build(folder / "build", once, sources, emulator, compiled))
