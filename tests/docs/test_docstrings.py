"""Examples in docstrings run."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch
import uniformer

import uniformer_kernels

from .tables import PUBLIC

NAMES = {"torch": torch, "uk": uniformer_kernels, "uniformer": uniformer}


def examples() -> Iterator[doctest.DocTest]:
    """Those of all public names."""
    finder = doctest.DocTestFinder()
    for module in map(import_module, PUBLIC):
        for name in module.__all__:
            for test in finder.find(getattr(module, name), name, globs=dict(NAMES)):
                if test.examples:
                    yield test


@pytest.mark.parametrize("test", list(examples()), ids=lambda test: test.name)
def test_examples_run(test: doctest.DocTest) -> None:
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


def test_the_main_functions_have_examples() -> None:
    assert {"depthwise_conv3d", "joint_attention", "explain", "create_model"} <= {
        test.name for test in examples()
    }
