"""Every shipped kernel compiles for every architecture and stays within its budget."""

from __future__ import annotations

import json

import pytest

from tests.triton.ahead_of_time import ARCHITECTURES, Binary
from tests.triton.budgets import FILE, build_all

_SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}  # bytes a program gets


@pytest.fixture(scope="module")
def built() -> dict[str, dict[str, Binary]]:
    return build_all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_budgets(built: dict[str, dict[str, Binary]], architecture: str) -> None:
    """Registers and shared memory as committed, tensor cores where they were, and no spills."""
    budgets = {k: Binary(**row) for k, row in json.loads(FILE.read_text())[architecture].items()}
    rewrite = "`python -m tests.triton.budgets` rewrites the file"
    assert built[architecture].keys() == budgets.keys(), rewrite
    over = {k: b for k, b in built[architecture].items() if not _within(b, budgets[k])}
    assert all(b.shared <= _SHARED[architecture] for b in budgets.values())
    assert not over, rewrite


def _within(binary: Binary, budget: Binary) -> bool:
    return (
        binary.stack == 0
        and binary.registers <= budget.registers
        and binary.shared <= budget.shared
        and binary.tensor_cores >= budget.tensor_cores
    )
