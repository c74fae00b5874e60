"""Rivals have to compute the same before they are timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Rivals = dict[str, Callable[[], object]]

OURS, OFFICIAL, CHANNELS_LAST = "ours", "official eager", "channels-last"


def equal(a: Tensor, b: Tensor, tolerance: float) -> None:
    """Raise unless the largest difference is below `tolerance` of the largest value."""
    error = ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()
    if not error <= tolerance:
        raise ValueError(f"rivals differ by {error:.2g} where {tolerance:.2g} is allowed")


def agree(rivals: Rivals, tolerance: float, want: Sequence[Tensor] | None = None) -> None:
    """Raise unless all rivals return the same tensors: what ours returns, or `want`."""
    want = rivals[OURS]() if want is None else want
    for call in rivals.values():
        for a, b in zip(call(), want, strict=True):
            equal(a, b, tolerance)
