"""Batch statistics over two processes against those of one with both batches."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from tests.contract import draw
from uniformer_kernels.blocks import Affine, BatchNorm, batch_norm, local_block

DIM = 6
# Samples of the processes: as many, not as many, one without any.
SPLITS = {"even": (2, 2), "uneven": (3, 1), "empty": (0, 4)}
SHAPE = (4, 2, 3, 5, DIM)
NORM = {"momentum": 0.3}


def _modules() -> nn.ModuleDict:
    torch.manual_seed(3)
    return nn.ModuleDict(
        {
            "dpe": nn.Conv3d(DIM, DIM, 3, padding=1, groups=DIM),
            "norm1": nn.BatchNorm3d(DIM, **NORM),
            "pw1": nn.Conv3d(DIM, DIM, 1),
            "dw": nn.Conv3d(DIM, DIM, 5, padding=2, groups=DIM),
            "pw2": nn.Conv3d(DIM, DIM, 1),
            "norm2": nn.BatchNorm3d(DIM, **NORM),
            "fc1": nn.Conv3d(DIM, 2 * DIM, 1),
            "fc2": nn.Conv3d(2 * DIM, DIM, 1),
            "norm": nn.BatchNorm3d(DIM, **NORM),
        }
    ).double()


def _batch() -> tuple[Tensor, Tensor]:
    """Samples with a mean far from zero, and a gradient of what becomes of them."""
    torch.manual_seed(5)
    return draw(*SHAPE, dtype=torch.float64) + 50, draw(*SHAPE, dtype=torch.float64)


def _step(modules: nn.ModuleDict, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """A local block and a norm that is not folded: results, gradients, running statistics."""
    x = x.clone().requires_grad_()
    parts = {
        name: (BatchNorm if "norm" in name else Affine).of(module)
        for name, module in modules.items()
    }
    norm = parts.pop("norm")
    y = batch_norm(local_block(x, **parts), norm)
    y.backward(dy)
    grads = {name: p.grad for name, p in modules.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **grads, **dict(modules.named_buffers())}


def _process(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    found = {}
    x, dy = _batch()
    for name, split in SPLITS.items():
        modules = nn.SyncBatchNorm.convert_sync_batchnorm(_modules())
        first = sum(split[:rank])
        part = slice(first, first + split[rank])
        found[name] = _step(modules, x[part], dy[part])
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("synchronised")
    multiprocessing.spawn(_process, (str(folder),), nprocs=2)
    return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(2)]


@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_are_one(split: str, found: list[dict[str, dict[str, Tensor]]]) -> None:
    expected = _step(_modules(), *_batch())
    first, second = (process[split] for process in found)
    for name, want in expected.items():
        if name in ("y", "x"):
            got = torch.cat([first[name], second[name]])
        elif name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(first[name], second[name])
            got = first[name]
        else:  # a parameter's gradient: the loss is the sum of both processes'
            got = first[name] + second[name]
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=f"{name}: {{}}".format)


def test_alone_a_synchronised_norm_is_one_of_its_own() -> None:
    module = nn.BatchNorm3d(4)
    alone = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module))
    x = torch.randn(2, 3, 3, 3, 4)
    got = batch_norm(x, BatchNorm.of(alone))
    torch.testing.assert_close(got, module(x.movedim(-1, 1)).movedim(1, -1))
    torch.testing.assert_close(alone.running_var, module.running_var)
    assert BatchNorm.of(alone.eval()).group is None
