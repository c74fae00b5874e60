"""In which order, and by which process, the videos of an epoch are taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from . import seeding


class ResumableSampler(Sampler[tuple[int, int]]):
    """Keys ``(epoch, index)`` of a :class:`~uniformer.data.VideoDataset` for one of the processes.

    In training an epoch is a permutation that depends on ``seed`` and the epoch alone; its start is
    repeated at the end until all processes have as many. Otherwise it is the list in its order,
    each video once: some processes may have one less, or none.

    ``set_epoch`` comes before each epoch; ``len`` is what an epoch still has for this process.

    Args:
        length: of the dataset.
        training: see above.
        seed: of the permutations.
        rank: which process this is, from 0.
        world_size: how many there are.

    Raises:
        ValueError: ``length`` or ``world_size`` is below 1, or there is no such rank.
    """

    def __init__(
        self, length: int, *, training: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        for name, size in (("length", length), ("world_size", world_size)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 <= rank < {world_size}, got {rank}")
        self.length, self.training, self.seed = length, training, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Go on with ``epoch``, from 0, ``start`` of whose videos this process has had already.

        Raises:
            ValueError: the epoch is negative, or has less than ``start``.
        """
        if epoch < 0:
            raise ValueError(f"epoch: expected at least 0, got {epoch}")
        if not 0 <= start <= (count := len(self._mine())):
            raise ValueError(f"start: expected 0 <= start <= {count}, got {start}")
        self.epoch, self.start = epoch, start

    def _mine(self) -> range:
        """Where in the (endlessly repeated) order of an epoch this process takes from."""
        end = -(-self.length // self.world_size) * self.world_size if self.training else self.length
        return range(self.rank, end, self.world_size)

    def __len__(self) -> int:
        return len(self._mine()) - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.training:
            generator = seeding.generator(self.seed, self.epoch)
            order: Sequence[int] = torch.randperm(self.length, generator=generator).tolist()
        else:
            order = range(self.length)
        for position in self._mine()[self.start :]:
            yield self.epoch, order[position % self.length]
