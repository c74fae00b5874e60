"""What every test gets: fixed seeds, no stray autocast or threads, and NaN where nothing wrote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from uniformer_kernels import use_backend

# Derandomised so that a run is repeatable; `--hypothesis-profile=explore` looks further.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, max_examples=30, **_common)
settings.register_profile("explore", max_examples=500, **_common)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nan_in_empty() -> Iterator[None]:
    """Fill every ``torch.empty`` with NaN, so an output a kernel forgot to write shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once for every backend, forced, so that none can step in for another."""
    with use_backend(request.param):
        yield request.param
