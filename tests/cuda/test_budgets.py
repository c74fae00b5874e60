"""The compiled kernels spill nothing, fit into every GPU and mostly multiply and add."""

from __future__ import annotations

import pytest

from tests.cuda import budgets
from uniformer_kernels import _extension

_REWRITE = "`python -m tests.cuda.budgets` rewrites the file: look at the difference"
_SHARED = {"sm_80": 163 * 1024, "sm_90a": 227 * 1024, "sm_100": 227 * 1024}
_REGISTERS = 168  # 384 threads of them fill a multiprocessor
_SHARE = {"5x5": 0.75, "3x3": 0.6}  # of multiply-adds; 1x1 is bound by memory
# 64-bit divisions, which the general kernels have many of, are calls: they keep a few numbers.
_CALLS = 32
_WATCHED = ["forward bfloat16 5x5 7", "weight_gradient bfloat16 5x5 7"]

built = pytest.mark.skipif(
    not _extension.manifest().get("cuda_architectures"), reason="built without nvcc"
)


def test_budgets_are_those_of_these_kernels() -> None:
    assert budgets.budgets()[0]["sources"] == budgets.sources(), _REWRITE


def test_budgets_hold_their_limits() -> None:
    rows = budgets.budgets()[1]
    assert {architecture for architecture, _ in rows} == set(_SHARED)
    for (architecture, text), kernel in rows.items():
        assert kernel.stack <= (_CALLS if "general" in text else 0), (architecture, text)
        assert kernel.shared <= _SHARED[architecture], (architecture, text)
        if kernel.multiply_adds is None:
            continue
        limit = 204 if "5x5" in text else _REGISTERS  # of 320 threads at most
        assert kernel.registers <= limit, (architecture, text)
        assert kernel.multiply_adds >= _SHARE.get(text.split()[2], 0), (architecture, text)


@built
def test_kernels_stay_within_their_budgets() -> None:
    """Another compiler may need another number of registers, yet has to keep the limits."""
    pytest.importorskip("triton")
    made, rows = budgets.budgets()
    same = made == budgets.made()
    found = budgets.usage()
    shares = budgets.multiply_adds(_WATCHED)
    assert found
    assert shares
    for key, kernel in found.items():
        assert kernel.stack <= (_CALLS if "general" in key[1] else 0), key
        if same and key in rows:
            assert kernel.registers <= rows[key].registers, (key, _REWRITE)
            assert kernel.shared <= rows[key].shared, (key, _REWRITE)
    for key, share in shares.items():
        assert share >= _SHARE["5x5"], key
