"""Several processes as one, by PyTorch's own means; a single process is the same, with one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ..layers import Stage

T = TypeVar("T")


class DistributedError(RuntimeError):
    """The processes or devices asked for are not there."""


@dataclass(frozen=True)
class World:
    """This process among ``size``, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value added up over all processes. The device does not wait for it."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[[], T]) -> T:
        """What ``work()`` returns or raises on the main process, on every process."""
        if self.size == 1:
            return work()
        result: list[Any] = [None, None]
        if self.is_main:
            try:
                result[0] = work()
            except Exception as error:  # every process has to hear of it
                result[1] = error
        dist.broadcast_object_list(result)
        if result[1] is not None:
            raise result[1]
        return result[0]


@contextlib.contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Take part in what torchrun started; alone if nothing did.

    Args:
        device: ``"cpu"``, ``"cuda"`` (under torchrun the one of the local rank), any other of
            PyTorch's names, or ``"auto"``: CUDA if there is any.

    Raises:
        DistributedError: there is no such device, or more local processes than devices.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    place = _device(device, int(os.environ.get("LOCAL_RANK", 0)) if launched else None)
    if not launched:
        yield World(device=place)
        return
    # Control messages go by gloo, on CPU tensors: they never wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int | None) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DistributedError(
            f"device: expected auto, cpu, cuda or another of PyTorch's, got {name!r}"
        ) from None
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    index = local_rank if local_rank is not None and device.index is None else device.index or 0
    if index >= count:
        raise DistributedError(
            f"device: expected a CUDA device for local rank {index}, got {count} devices"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def shard(model: nn.Module, world: World, *, sync_batch_norm: bool) -> None:
    """Split every block's parameters over the processes (FSDP2), and the rest as one more part.

    With ``sync_batch_norm`` the statistics of BatchNorm are of all processes' batches.
    """
    if sync_batch_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for stage in model.modules():
        if isinstance(stage, Stage):
            for block in stage:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def replicate(model: nn.Module, world: World, *, sync_batch_norm: bool) -> nn.Module:
    """The model with gradients averaged over the processes (DDP).

    With ``sync_batch_norm`` the statistics of BatchNorm are of all processes' batches.
    """
    devices = [world.device.index] if world.device.type == "cuda" else None
    replica = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    if sync_batch_norm:  # afterwards: on the CPU, DDP would refuse what our blocks can do
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return replica


@contextlib.contextmanager
def local_gradients(model: nn.Module, local: bool) -> Iterator[None]:
    """Whether the gradients of a backward pass stay this process's own, to be added to."""
    if isinstance(model, DistributedDataParallel) and local:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not local)
    yield


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every process the main one's running statistics, with which it is tested and saved."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
