"""Pages that are made of the code say what it says now."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from uniformer.models.facts import FACTS

import uniformer_kernels as uk
from uniformer_kernels.backends import OPERATORS

from .tables import DOCS, FAMILIES, PUBLIC, TABLES, with_tables


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.name)
def test_the_page_is_fresh(page: Path) -> None:
    assert page.read_text() == with_tables(page), "stale: python -m tests.docs.tables"


def test_every_model_belongs_to_one_family() -> None:
    for name in FACTS:
        assert sum(belongs(name) for belongs in FAMILIES.values()) == 1, name


def test_every_operator_has_a_section() -> None:
    text = (DOCS / "operators.md").read_text()
    for name in sorted(set(OPERATORS) & set(uk.__all__)):
        assert re.search(rf"^#+ .*\b{name}\b", text, re.MULTILINE), name


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_there_and_documented(module: str) -> None:
    found = import_module(module)
    assert len(set(found.__all__)) == len(found.__all__)
    for name in found.__all__:
        assert getattr(found, name).__doc__, name
