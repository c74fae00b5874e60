"""The compiled kernels spill nothing, fit into every GPU and mostly multiply and add."""

from __future__ import annotations

import shutil

import pytest

from tests.cuda import budgets
from tests.cuda.budgets import Kernel

_REWRITE = "`make budgets` rewrites the file: look at the difference"
_SHARED = {"sm_80": 163 * 1024, "sm_90a": 227 * 1024, "sm_100": 227 * 1024}
_RESERVED = {"sm_80": 0, "sm_90a": 1024, "sm_100": 1024}  # of shared memory, by the system
# 320, 512 and, at 168, 384 threads of them fill a multiprocessor.
_REGISTERS = {"5x5": 204, "1": 128, "5": 128}
# Of multiply-adds, where these bound a kernel; of matrix products, each of which takes many cycles.
_SHARE = {"5x5": 0.75, "3x3": 0.6, "toeplitz 5": 0.15, "toeplitz_weight_gradient 5": 0.25}
# Divisions of 64 bits, and of floats as IEEE has them, are calls: kernels keep a few numbers then.
_CALLING, _CALLS = ("general", "shrink "), 32


def hold_limits(architecture: str, text: str, kernel: Kernel) -> None:
    assert kernel.stack <= (_CALLS if text.startswith(_CALLING) else 0), (architecture, text)
    assert kernel.shared <= _SHARED[architecture], (architecture, text)
    if kernel.multiply_adds is None:
        return
    name, _, taps, *_ = text.split()
    share = _SHARE.get(taps, _SHARE.get(f"{name} {taps}", 0))
    assert kernel.registers <= _REGISTERS.get(taps, 168), (architecture, text)
    assert kernel.multiply_adds >= share, (architecture, text)


def test_budgets_are_those_of_these_kernels() -> None:
    """All are compiled by ``make budgets``; a change of the sources asks for it."""
    made, rows = budgets.budgets()
    assert made["sources"] == budgets.sources(), _REWRITE
    for (architecture, text), kernel in rows.items():
        shared = budgets.planned(text, architecture) + _RESERVED[architecture]
        assert kernel.shared == shared, (architecture, text, _REWRITE)


def test_budgets_hold_their_limits() -> None:
    rows = budgets.budgets()[1]
    assert {architecture for architecture, _ in rows} == set(_SHARED)
    for (architecture, text), kernel in rows.items():
        hold_limits(architecture, text, kernel)


def test_tma_is_told_by_its_instructions() -> None:
    copy, wait = "/*2ce0*/ UTMALDG.5D [UR8], [UR20] ;", "/*2a80*/ @P1 SYNCS.PHASECHK P0, [R75] ;"
    assert budgets.copies_boxes(f"{copy}\n{wait}\n")
    assert not budgets.copies_boxes(copy)
    assert not budgets.copies_boxes(wait)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("text", ["forward bfloat16 5x5 7 tma", "weight_gradient float32 3x3 5"])
def test_a_kernel_stays_within_its_budget(text, tmp_path) -> None:
    """Another compiler may need another number of registers, yet has to keep the limits."""
    pytest.importorskip("triton")
    made, rows = budgets.budgets()
    kernel = budgets.instantiated(text, "sm_90a", tmp_path)
    hold_limits("sm_90a", text, kernel)
    if made["nvcc"] == budgets.compiler():
        assert kernel == rows["sm_90a", text], _REWRITE
