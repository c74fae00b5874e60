"""What every test gets: fixed seeds, no stray autocast or threads, and NaN where nothing wrote.

With TRITON_INTERPRET=1 only the tests that take a ``backend`` are run, on the Triton kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from uniformer_kernels import BackendError, use_backend
from uniformer_kernels.triton import INTERPRETED

# Derandomised so that a run is repeatable; `--hypothesis-profile=explore` looks further.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, max_examples=30, **_common)
settings.register_profile("explore", max_examples=500, **_common)
settings.register_profile("few", derandomize=True, max_examples=6, **_common)
settings.load_profile("few" if INTERPRETED else "repeatable")
_BACKENDS = ["triton"] if INTERPRETED else ["reference", "cpu"]
_NOT_INTERPRETED = ("is float64", "is bfloat16, which Triton's interpreter computes wrongly")

# Processes that test side by side share the cores; what they start inherits it.
if (_processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))) > 1:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // _processes))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())

if INTERPRETED:
    from tests.interpreter import hasten

    hasten()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if INTERPRETED:
        others = [item for item in items if "backend" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> object:
    """Skip what the interpreter cannot compute; any other refusal of a backend is a failure."""
    try:
        return (yield)
    except BackendError as error:
        if INTERPRETED and str(error).endswith(_NOT_INTERPRETED):
            pytest.skip(str(error))
        raise


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


@pytest.fixture(params=_BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once for every backend, forced, so that none can step in for another."""
    with use_backend(request.param):
        yield request.param
