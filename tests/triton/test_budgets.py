"""Every shipped kernel compiles for every architecture and stays within its budget."""

from __future__ import annotations

from tests.triton.ahead_of_time import ARCHITECTURES, Binary
from tests.triton.budgets import budgets, build_all, sources, variants

_SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}  # bytes a program gets
_REWRITE = "`make budgets` compiles what has changed and rewrites the file: look at the difference"


def test_budgets_are_those_of_these_kernels() -> None:
    digests, rows = budgets()
    assert digests == sources(), _REWRITE
    assert rows.keys() == variants().keys(), _REWRITE


def test_budgets_allow_no_spills() -> None:
    """And no more registers or shared memory than there are."""
    for (architecture, text), budget in budgets()[1].items():
        assert budget.stack == 0, text
        assert budget.registers <= 255, text
        assert budget.shared <= _SHARED[architecture], text


def test_products_use_tensor_cores() -> None:
    for (architecture, text), budget in budgets()[1].items():
        dots = "linear_kernel", "attention_kernels.forward", "feed_forward._forward", "local_block"
        if "bf16" in text and any(name in text for name in dots):
            assert budget.tensor_cores, (architecture, text)


def test_kernels_stay_within_their_budgets() -> None:
    """One variant of every kernel for every architecture; the source vouches for the others."""
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for key in variants():
        architecture, text = key
        first.setdefault((architecture, text.partition("(")[0]), key)
    assert {architecture for architecture, _ in first} == set(ARCHITECTURES)
    rows = budgets()[1]
    over = {k: b for k, b in build_all(list(first.values())).items() if not _within(b, rows[k])}
    assert not over, _REWRITE


def _within(binary: Binary, budget: Binary) -> bool:
    return (
        binary.stack <= budget.stack
        and binary.registers <= budget.registers
        and binary.shared <= budget.shared
        and binary.tensor_cores >= budget.tensor_cores
    )
