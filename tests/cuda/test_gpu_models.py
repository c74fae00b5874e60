"""The models that are measured on a GPU, as far as they run without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import models as builders
from benchmarks.gpu import models
from benchmarks.gpu.models import Family
from uniformer_kernels.bench.timing import Samples


@pytest.mark.parametrize("build", [builders.base, builders.xs], ids=["B", "XS"])
def test_rivals_compute_the_same(build) -> None:
    modules, clips = build(1)
    assert clips.shape[:3] == (1, 3, 16)
    x = torch.randn(2, 3, 4, 64, 64)
    with torch.inference_mode():
        want, *others = (module.eval()(x) for module in modules.values())
    assert len(others) == 2
    for other in others:
        torch.testing.assert_close(other, want, rtol=1e-3, atol=1e-3)


@pytest.fixture
def rows(monkeypatch) -> list[dict[str, Any]]:
    """Of two families; the second rival cannot run."""

    def compare(rivals: dict[str, Any], **_: Any) -> dict[str, Samples | str]:
        return {name: "no" if name == "official" else Samples([1e-6]) for name in rivals}

    def build(count: int) -> tuple[dict[str, nn.Module], Tensor]:
        names = "ours", "official", "official + SDPA"
        return {name: nn.Sequential(nn.Linear(4, 3), nn.GELU()) for name in names}, torch.ones(
            count, 4
        )

    for name, stub in {
        "compare": compare,
        "on_gpu": lambda modules, clips: (modules, clips),
        "peak": lambda call: 5,
        "training": lambda modules, clips: dict.fromkeys(modules, int),
    }.items():
        monkeypatch.setattr(models, name, stub)
    static = lambda module, *, dynamic: module if dynamic is False else None  # noqa: E731
    monkeypatch.setattr(torch, "compile", static)
    families = Family("A", build, (1, 16)), Family("B", build, (1, 4))
    return [row for family in families for row in models.measure(family)]


def test_every_row_of_a_family(rows) -> None:
    names = [row["what"] for row in rows]
    inference = "{} inference, batch {} bf16, {}"
    hows = "as a graph", "from Python"
    assert names == [
        *(inference.format("A", batch, how) for batch in (1, 16) for how in hows),
        "A training step, batch 16 bf16",
        *(inference.format("B", batch, how) for batch in (1, 4) for how in hows),
        "B training step, batch 4 bf16",
    ]
    assert all(row["median_us"].keys() >= {"compiled, official + SDPA"} for row in rows)
    assert all(row["failed"] == {"official": "no"} for row in rows)


def test_peaks_are_of_what_ran(rows) -> None:
    graph, python, *_, step = rows[:5]
    ran = {"ours", "official + SDPA", "compiled, official + SDPA"}
    assert graph["peak_bytes"] == {}
    assert python["peak_bytes"] == step["peak_bytes"] == dict.fromkeys(ran, 5)
    assert step["saved_bytes"].keys() == {"ours", "official + SDPA"}
    assert step["saved_bytes"]["ours"] == 16 * 7 * 4  # the input and what GELU was applied to
