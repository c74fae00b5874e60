"""Two processes get the gradients of one, with models that are accelerated before or behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor

from .processes import WRAPS, gradients, parts, work


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (2, folder), nprocs=2)
    return torch.load(folder / "gradients.pt")


@pytest.fixture(scope="module")
def wanted() -> dict[str, Tensor]:
    return gradients(*parts())


@pytest.mark.parametrize("name", WRAPS)
def test_gradients_are_those_of_one_process(
    name: str, found: dict[str, dict[str, Tensor]], wanted: dict[str, Tensor]
) -> None:
    assert found[name].keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(found[name][parameter], gradient, rtol=1e-4, atol=1e-5)
