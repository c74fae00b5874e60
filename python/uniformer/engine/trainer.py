"""A model and what trains it: one step, one validation, the state of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Batch, Broken, Mixup
from ..models.base import Classifier
from ..registry import create_model
from ..weights import load_checkpoint
from ..weights.files import Metadata
from ..weights.fit import head_dim_of
from .checkpoint import load_training_state, model_state, training_state
from .distributed import World, local_gradients, replicate, shard, share_buffers
from .loss import classification_loss
from .metrics import Accuracy
from .optimizer import average_of, clip_gradients, make_optimizer
from .schedule import learning_rate
from .settings import Settings, SettingsError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def seed_of(*key: int) -> int:
    """A seed that depends on every number of ``key``."""
    # By itself the sequence takes (1,) and (1, 0) for the same.
    (seed,) = np.random.SeedSequence([len(key), *key]).generate_state(1, np.uint64)
    return int(seed)


def _create(settings: Settings, num_classes: int) -> nn.Module:
    """The model of the settings, if it classifies clips of their size.

    Raises:
        SettingsError: it does not, or there is no such model or keyword.
    """
    try:
        model = create_model(settings.model, **{"num_classes": num_classes, **settings.keywords})
    except (TypeError, ValueError) as error:
        raise SettingsError(f"model, keywords: {error}") from error
    taken = model.pretrained_cfg["input_size"]
    if len(taken) != 4 or not isinstance(model, Classifier):
        raise SettingsError(f"model: expected a classifier of clips, got {settings.model!r}")
    clip = (3, settings.frames, settings.size, settings.size)
    if getattr(model, "clip_shape", clip) != clip:
        raise SettingsError(
            f"frames, size: expected those of {settings.model}, num_frames={taken[1]} and "
            f"resolution={taken[2]} of keywords, got {settings.frames} and {settings.size}"
        )
    return model


class Trainer:
    """A model in training.

    Every step draws from a stream of its own, made from seed, step and process: what a run draws
    does not depend on when it was interrupted.

    Args:
        settings: of the run.
        num_classes: of the data.
        world: this process among others.
        start: whether to fill the model from ``settings.start``.

    Attributes:
        notes: where the weights are from, if there is something to tell.

    Raises:
        SettingsError: the model does not fit.
        CheckpointError: as ``load_checkpoint``.
    """

    def __init__(
        self, settings: Settings, num_classes: int, world: World, *, start: bool = True
    ) -> None:
        self.settings, self.num_classes, self.world = settings, num_classes, world
        torch.manual_seed(seed_of(settings.seed))
        model = _create(settings, num_classes)
        self.created = model.pretrained_cfg
        self.head_dim = head_dim_of(model)
        self.notes = []
        if start and settings.start is not None:
            report = load_checkpoint(
                model, settings.start, head=settings.start_head, inflation=settings.inflation
            )
            self.notes.append(str(report))
        elif start and settings.starts_from is not None:
            self.notes.append(
                f"the recipe starts from {settings.starts_from}, this run from random weights; "
                "--start FILE takes those of a file"
            )
        if settings.grad_checkpointing:
            model.set_grad_checkpointing()
        self.model = model.to(world.device)
        self.average = None if settings.ema is None else average_of(model, settings.ema)
        self.sharded = settings.parallel == "fsdp" and world.size > 1
        if self.sharded:
            shard(self.model, world, sync_batch_norm=settings.sync_batch_norm)
            if self.average is not None:
                shard(self.average.module, world, sync_batch_norm=False)
        if settings.compile:
            self.model.compile()
        self.optimizer = make_optimizer(self.model, settings)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=settings.amp == "fp16")
        self.parallel = self.model
        if world.size > 1 and not self.sharded:
            self.parallel = replicate(self.model, world, sync_batch_norm=settings.sync_batch_norm)
        self.mixup = Mixup(
            num_classes,
            mixup=settings.mixup,
            cutmix=settings.cutmix,
            smoothing=settings.smoothing,
        )

    @property
    def tested(self) -> nn.Module:
        """The model that is validated and kept: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0 over all epochs."""
        s = self.settings
        return learning_rate(
            step / steps_per_epoch,
            epochs=s.epochs,
            warmup_epochs=s.warmup_epochs,
            lr=s.lr,
            warmup_lr=s.warmup_lr,
            min_lr=s.min_lr,
        )

    def step(
        self, batches: Sequence[Batch], total: int, step: int, lr: float
    ) -> tuple[Tensor, Tensor | None]:
        """One step of the optimiser on this process's share of a large batch.

        Args:
            batches: one after another, their gradients added up; none is empty.
            total: clips of all batches of all processes.
            step: its number.
            lr: the learning rate.

        Returns:
            This process's share of the mean loss, times the processes, and the gradients' norm
            before clipping.
        """
        settings, device = self.settings, self.world.device
        seed = seed_of(settings.seed, step, self.world.rank)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        loss = torch.zeros((), device=device)
        for number, batch in enumerate(batches, 1):
            clips = batch.clips.to(device, non_blocking=True)
            clips, targets = self.mixup(clips, batch.labels, generator)
            targets = targets.to(device, non_blocking=True)
            with local_gradients(self.parallel, number < len(batches)):
                dtype = _DTYPES.get(settings.amp or "")
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    outputs = self.parallel(clips)
                # Gradients are averaged over the processes, each of which counts by its clips.
                share = len(clips) * self.world.size / total
                part = share * classification_loss(outputs, targets)
                self.scaler.scale(part).backward()
            loss += part.detach()
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model, settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss, norm

    @torch.no_grad()
    def validate(
        self, batches: Iterable[Batch], count: int, check: Callable[[int], None]
    ) -> tuple[Accuracy, list[Broken]]:
        """Classify what every process has of the validation videos, in full precision.

        Args:
            batches: this process's.
            count: the most batches that a process has.
            check: called with the number of each one, on every process; may raise.

        Returns:
            The counts and broken videos of all processes.
        """
        model, settings, device = self.tested, self.settings, self.world.device
        share_buffers(model, self.world)
        model.eval()
        accuracy, broken = Accuracy(self.num_classes), []
        remaining = iter(batches)
        for number in range(count):
            check(number)
            batch = next(remaining, None)
            if batch is not None:
                broken += batch.broken
            if batch is not None and len(batch.clips):
                accuracy.update(model(batch.clips.to(device, non_blocking=True)), batch.labels)
            elif self.sharded:  # takes part in gathering the others' weights
                model(torch.zeros(1, 3, settings.frames, *[settings.size] * 2, device=device))
        accuracy.reduce()
        return accuracy, [entry for part in self.world.gather(broken) for entry in part]

    def state(self) -> dict[str, Any]:
        """All that steps change, whole, on the main process. Every process has to take part."""
        return training_state(self.model, self.optimizer, self.scaler, self.average)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to what ``state`` returned."""
        load_training_state(state, self.model, self.optimizer, self.scaler, self.average)

    def weights(self) -> dict[str, Tensor]:
        """The tested model's, whole, on the main process. Every process has to take part."""
        return model_state(self.tested)

    def metadata(self, class_names: Sequence[str] | None) -> Metadata:
        """What a file of the weights tells of the model."""
        return Metadata(
            model=self.created["architecture"],
            keywords=self.created["keywords"],
            head_dim=self.head_dim,
            class_names=None if class_names is None else tuple(class_names),
        )
