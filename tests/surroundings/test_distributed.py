"""Two processes with half of the batch each, and their gradients: those of one with all of it."""

from __future__ import annotations

import copy
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.surroundings.models import blocks_of, gradients_of, input_of, loss_of, model_of, outputs

RANKS = 2
KINDS = ("image", "v2")


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """A mean over the samples, in which every sample counts differently by its own output."""
    ys = outputs(model(x))
    return sum(
        (loss_of(y[i : i + 1]) + y[i].square().sum()) for y in ys for i in range(len(x))
    ) / len(x)


def expected(kind: str, *, training: bool) -> tuple[nn.Module, Tensor, dict[str, Tensor | None]]:
    """A model, its whole batch in float64, and its gradients in one process."""
    torch.manual_seed(0)
    model = model_of(kind).double().train(training)
    x = input_of(kind, 2 * RANKS).double()
    single = copy.deepcopy(model)
    loss(single, x).backward()
    return model, x, gradients_of(single)


def same(got: dict[str, Tensor | None], want: dict[str, Tensor | None]) -> None:
    """To 1e-6 of the largest gradient of a parameter, and of all where that is all but nothing."""
    largest = max(g.abs().max() for g in want.values() if g is not None)
    for name, g in got.items():
        assert (g is None) == (want[name] is None), name
        if g is not None:
            g = g.full_tensor() if isinstance(g, DTensor) else g
            bound = 1e-6 * max(want[name].abs().max(), 1e-6 * largest)
            assert (g - want[name]).abs().max() <= bound, name


def part(x: Tensor) -> Tensor:
    return x.chunk(RANKS)[dist.get_rank()]


def check_ddp(kind: str) -> None:
    model, x, want = expected(kind, training=False)
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    loss(parallel, part(x)).backward()
    same(gradients_of(model), want)


def check_synchronised_norms(kind: str) -> None:
    """Gradients are averaged by hand: DDP itself refuses synchronised norms on CPUs."""
    model, x, want = expected(kind, training=True)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    loss(model, part(x)).backward()
    for p in model.parameters():
        if p.grad is not None:
            dist.all_reduce(p.grad, dist.ReduceOp.SUM)
            p.grad /= RANKS
    same(gradients_of(model), want)


def check_fsdp(kind: str) -> None:
    model, x, want = expected(kind, training=False)
    before = copy.deepcopy(model.state_dict())
    for block in blocks_of(model):
        fully_shard(block)
    fully_shard(model)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    loss(model, part(x)).backward()
    same(gradients_of(model), want)

    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if dist.get_rank() == 0:  # the others get nothing
        assert whole.keys() == before.keys()
        assert all(torch.equal(whole[name], before[name]) for name in before)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, whole, options=options)
    model.zero_grad()
    loss(model, part(x)).backward()
    same(gradients_of(model), want)


CHECKS = (check_ddp, check_synchronised_norms, check_fsdp)


def worker(rank: int, address: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    for check in CHECKS:
        for kind in KINDS:
            try:
                check(kind)
                result = "passed"
            except Exception as error:  # the others are to be checked, too
                result = f"{type(error).__name__}: {error}"
            Path(folder, f"{check.__name__}-{kind}-{rank}").write_text(result)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes wrote, which are started once for all checks."""
    folder = tmp_path_factory.mktemp("results")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (f"tcp://127.0.0.1:{port}", str(folder)), nprocs=RANKS)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_gradients(check, kind: str, results: Path) -> None:
    for rank in range(RANKS):
        assert (results / f"{check.__name__}-{kind}-{rank}").read_text() == "passed"
