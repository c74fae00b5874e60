"""Batches for this process, in an order that can be taken up anywhere; how long they took."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator

from torch.utils.data import DataLoader, Dataset

from ..data import Batch, ResumableSampler, collate
from .distributed import World
from .interruption import leave_signals_to_parent
from .settings import Settings


def training_loader(
    dataset: Dataset, batch_size: int, settings: Settings, world: World
) -> tuple[DataLoader[Batch], ResumableSampler]:
    """Batches of ``batch_size`` videos for this process, and what decides on their order."""
    sampler = ResumableSampler(
        len(dataset),
        training=True,
        seed=settings.seed,
        rank=world.rank,
        world_size=world.size,
    )
    return _loader(dataset, batch_size, sampler, settings, world), sampler


def validation_loader(
    dataset: Dataset, batch_size: int, settings: Settings, world: World
) -> tuple[DataLoader[Batch], int]:
    """Batches of this process's part of the videos; the most that any process has."""
    sampler = ResumableSampler(len(dataset), training=False, rank=world.rank, world_size=world.size)
    most = -(-len(dataset) // (world.size * batch_size))
    return _loader(dataset, batch_size, sampler, settings, world), most


def _loader(
    dataset: Dataset,
    batch_size: int,
    sampler: ResumableSampler,
    settings: Settings,
    world: World,
) -> DataLoader[Batch]:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=settings.workers,
        collate_fn=collate,
        pin_memory=world.device.type == "cuda",
        persistent_workers=settings.workers > 0,
        worker_init_fn=leave_signals_to_parent,
    )


def groups(batches: Iterable[Batch], size: int, count: int) -> Iterator[list[Batch]]:
    """``count`` lists of ``size`` batches."""
    if not count:  # iterating starts the workers
        return
    remaining = iter(batches)
    for _ in range(count):
        yield list(itertools.islice(remaining, size))


class Watched:
    """An iterator, and the seconds that were spent waiting for what it gives."""

    def __init__(self, items: Iterable[list[Batch]]) -> None:
        self._items = iter(items)
        self.waited = 0.0

    def __iter__(self) -> Watched:
        return self

    def __next__(self) -> list[Batch]:
        began = time.perf_counter()
        item = next(self._items)
        self.waited += time.perf_counter() - began
        return item
