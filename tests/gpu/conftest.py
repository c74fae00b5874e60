"""A test whose kernel goes astray fails alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_context_a_failure() -> Iterator[None]:
    """An illegal access ends the process's context, in which every later test would fail, too.

    xdist starts another process in place of one that has ended; there is no other without it.
    """
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        pytest.exit(f"the GPU can no longer be used: {error}", returncode=1)
