"""The kernels of ``csrc/cuda``, compiled for this processor once a session."""

from __future__ import annotations

import pytest

from tests.cuda.emulator import SANITIZED, Emulator, kept_build


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    return kept_build("plain")


@pytest.fixture(scope="session")
def sanitized() -> Emulator:
    """It sees accesses beside an array, unaligned ones, and undefined behaviour."""
    return kept_build("sanitized", SANITIZED)
