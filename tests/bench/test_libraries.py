"""Blocks of other libraries as rivals: on the call's own tensors, and only where installed."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

from uniformer_kernels.bench.case import MATRIX, Case, Rival
from uniformer_kernels.bench.cases import cases, libraries
from uniformer_kernels.bench.ceilings import Ceilings
from uniformer_kernels.bench.check import judge
from uniformer_kernels.bench.measure import BACKWARD, Setting, measure, objection

CPU = torch.device("cpu")
PACKAGES = ("timm", "torchvision")


def network(
    run, make=lambda: nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6))
) -> Rival:
    names = {"fc1_weight": "0.weight", "fc1_bias": "0.bias"}
    names |= {"fc2_weight": "2.weight", "fc2_bias": "2.bias"}
    return libraries.block("torch", make, names, run)


def measured(rival: Rival, pass_: str = BACKWARD):
    shapes = {"x": (1, 5, 6), "fc1_weight": (10, 6), "fc1_bias": (10,), "fc2_weight": (6, 10)}
    shapes |= {"fc2_bias": (6,), "residual": (1, 5, 6)}
    case = Case("feed_forward", "tiny", shapes, 10, {MATRIX: 1.0}, rivals={"block": rival})
    setting = Setting(CPU, compare=True, rounds=1, sample=0)
    limits = Ceilings(1e10, 1e11, {"float32": 1e11})
    rows = measure(case, torch.float32, pass_, setting, limits)
    return {row.rival: row for row in rows}.get("block")


def test_a_block_computes_with_our_tensors() -> None:
    """Its own parameters are other numbers; gradients reach every tensor of the call."""
    row = measured(network(lambda module, x, residual: residual + module(x)))
    assert row.refused is None
    assert row.seconds > 0


def test_a_block_that_computes_something_else_is_refused() -> None:
    row = measured(network(lambda module, x, residual: 2 * residual + module(x)))
    assert row.seconds is None
    assert "the result is off by" in row.refused


def test_a_library_that_cannot_be_imported_says_so() -> None:
    def make() -> nn.Module:
        raise RuntimeError("built for another PyTorch")

    row = measured(network(lambda module, x, residual: module(x), make))
    assert row.refused == "RuntimeError: built for another PyTorch"


def test_what_is_not_installed_is_no_rival() -> None:
    absent = libraries.block("no_such_package", nn.Identity, {}, lambda module, **_: None)
    assert measured(absent) is None


def usable(package: str) -> bool:
    try:
        import_module(package)
    except Exception:  # torchvision fails in many ways next to a PyTorch it was not built for
        return False
    return True


RIVALS = {
    f"{case.operator}: {name}": (case, rival)
    for case in cases()
    for name, rival in case.rivals.items()
    if name.startswith(PACKAGES)
}


def test_the_nearest_blocks_are_rivals() -> None:
    assert set(RIVALS) == {
        "joint_attention: timm Attention",
        "window_attention: timm WindowAttention",
        "query_attention: timm AttentionPoolLatent",
        "feed_forward: timm Mlp",
        "feed_forward: torchvision MLP",
        "patch_embed: timm PatchEmbed",
        "patch_embed: torchvision PatchEmbed3d",
    }


@pytest.mark.parametrize("name", RIVALS)
def test_installed_blocks_compute_what_the_operator_does(name: str) -> None:
    case, rival = RIVALS[name]
    package = name.partition(": ")[2].partition(" ")[0]
    if not usable(package):
        pytest.skip(f"{package} is not installed")
    assert rival.serves(torch.float32, CPU)
    referee = judge(case, torch.float32, CPU, backward=True)
    assert objection(case, rival, referee, torch.float32, CPU, backward=True) is None
