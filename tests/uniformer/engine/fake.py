"""Clips that are made up, a model that is small: what engine tests train.

As a program it is a run alone: ``python -m tests.uniformer.engine.fake OUT EPOCH INDEX`` trains
into OUT and kills itself where it takes that clip.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from uniformer.data import Broken, ResumableSampler, Sample
from uniformer.engine.settings import Settings
from uniformer.engine.sources import Sources
from uniformer.engine.train import train

CLASSES = 4
TINY: dict[str, Any] = {
    "model": "uniformer_video_xxs",
    "keywords": {
        "dims": [8, 16, 16, 32],
        "depths": [1, 1, 2, 1],
        "head_dim": 8,
        "drop_path_rate": 0.2,
    },
    "frames": 2,
    "size": 32,
    "batch_size": 4,
    "epochs": 2,
    "warmup_epochs": 1,
    "lr": 1e-3,
    "ema": 0.5,
    "workers": 0,
    "log_interval": 1,
    "save_interval": 2,
}
# Without BatchNorm or anything that is drawn, so that a batch is the mean of its parts.
PLAIN: dict[str, Any] = {
    **TINY,
    "model": "uniformerv2_b16",
    "keywords": {
        "dim": 16,
        "depth": 2,
        "num_heads": 2,
        "resolution": 32,
        "num_frames": 2,
        "local_mhra": "none",
        "dropout": 0.0,
    },
    "mixup": 0,
    "cutmix": 0,
    "clip_grad": None,
    "ema": None,
}


class Clips(Dataset):
    """Noise whose brightness is its class; drawn from epoch and index alone.

    Args:
        length: how many.
        broken: those that give none.
        signal_at: epoch, index and a signal that the process sends itself there.
    """

    def __init__(
        self,
        length: int,
        broken: Sequence[int] = (),
        signal_at: tuple[int, int, int] | None = None,
    ) -> None:
        self.length, self.broken, self.signal_at = length, broken, signal_at
        self.taken: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> Sample | Broken:
        epoch, index = key
        self.taken.append(key)
        if self.signal_at and key == self.signal_at[:2]:
            os.kill(os.getpid(), self.signal_at[2])
        if index in self.broken:
            return Broken(index, f"video {index}", f"video {index} does not decode")
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        label = index % CLASSES
        clip = torch.randn(1, 3, 2, 32, 32, generator=generator) + label
        return Sample(clip, label, index)


def tiny(**changes: Any) -> Settings:
    """The settings of a run of a second."""
    return Settings(**{**TINY, **changes})


def sources(length: int = 12, **keywords: Any) -> Sources:
    """Made-up clips to train on, and six to validate with."""
    return Sources(Clips(length, **keywords), Clips(6), CLASSES, list("abcd"))


def taken_at(epoch: int, position: int, length: int = 12) -> tuple[int, int]:
    """What a process alone takes as number ``position`` of an epoch: epoch and index."""
    sampler = ResumableSampler(length, training=True)
    sampler.set_epoch(epoch)
    return list(sampler)[position]


def records(out: Path) -> list[dict[str, Any]]:
    """The log of a run, without what depends on the clock."""
    clocked = ("time", "waiting", "clips_per_second")
    lines = (out / "log.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    return [{key: x for key, x in entry.items() if key not in clocked} for entry in kept]


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, epoch, index = sys.argv[1:]
    train(tiny(), sources(signal_at=(int(epoch), int(index), signal.SIGKILL)), out)
