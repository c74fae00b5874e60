"""What the processes of the distributed tests run: data parallel and sharded training steps."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from uniformer_kernels.accelerate import accelerate, restore

from .models.official import CBlock, PatchEmbed, SABlock, UniFormer

Wrap = Callable[[nn.Module], nn.Module]


def data_parallel(model: nn.Module) -> nn.Module:
    accelerate(model)
    return DistributedDataParallel(model)


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, (CBlock, SABlock)):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def accelerated_then_sharded(model: nn.Module) -> nn.Module:
    accelerate(model)
    return sharded(model)


def sharded_then_accelerated(model: nn.Module) -> nn.Module:
    sharded(model)
    assert len(accelerate(model).swapped) == 9
    return model


def accelerated_sharded_and_restored(model: nn.Module) -> nn.Module:
    accelerated_then_sharded(model)
    restore(model)
    assert type(model.blocks1[0]).__name__ == "FSDPCBlock"
    assert type(model.blocks1[0]).forward is CBlock.forward
    return model


WRAPS: dict[str, Wrap] = {
    wrap.__name__: wrap
    for wrap in (
        data_parallel,
        accelerated_then_sharded,
        sharded_then_accelerated,
        accelerated_sharded_and_restored,
    )
}


def parts(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A model whose norms go by their running statistics, and a batch of four clips."""
    torch.manual_seed(seed)
    model = UniFormer().eval()
    return model, torch.randn(4, 3, 4, 32, 32)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of the mean over the batch, by the name of the parameter."""
    model(x).square().sum(1).mean().backward()
    return {
        name.removeprefix("module."): p.grad.full_tensor()
        if isinstance(p.grad, DTensor)
        else p.grad
        for name, p in model.named_parameters()
    }


@contextlib.contextmanager
def without_their_forwards() -> Iterator[None]:
    """Nobody may run a block's own forward."""

    def refuse(self: nn.Module, x: Tensor) -> Tensor:
        raise AssertionError(f"{type(self).__name__} runs its own forward")

    before = {cls: cls.forward for cls in (CBlock, SABlock, PatchEmbed)}
    try:
        for cls in before:
            cls.forward = refuse
        yield
    finally:
        for cls, forward in before.items():
            cls.forward = forward


def work(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    model, x = parts()
    found = {}
    for name, wrap in WRAPS.items():
        mine = x.chunk(world)[rank]
        wrapped = wrap(copy.deepcopy(model))
        restored = wrap is accelerated_sharded_and_restored
        with contextlib.nullcontext() if restored else without_their_forwards():
            found[name] = gradients(wrapped, mine)
    if rank == 0:
        torch.save(found, folder / "gradients.pt")
    dist.destroy_process_group()
