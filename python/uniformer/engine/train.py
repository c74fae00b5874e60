"""A training run: epochs of steps, what is saved and told on the way."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ..data import Batch, Broken
from ..weights.files import write_checkpoint
from .checkpoint import CHECKPOINT, read_run, write_run
from .distributed import World
from .files import replacing
from .interruption import Interrupted, Interruption
from .loading import Watched, groups, training_loader, validation_loader
from .logs import Log, Silent
from .metrics import Accuracy, write_confusion
from .progress import Clock, Pace, Progress
from .resume import compare, divide, facts_of, open_folder
from .settings import Settings
from .sources import Sources
from .trainer import Trainer

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingError(RuntimeError):
    """A run cannot go on; says why, and what is left of it."""


def train(
    settings: Settings,
    sources: Sources,
    out: str | Path,
    *,
    world: World | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train a classifier of videos.

    Into ``out`` go ``checkpoint.pt`` (the state of the run, after every epoch and every
    ``save_interval`` steps), ``best.safetensors`` and the confusion matrix of the best validation,
    ``last.safetensors``, ``log.jsonl`` and TensorBoard's curves.

    A run that is resumed goes on as if it had never stopped: on the CPU, in as many processes, to
    the bit. A video that cannot be decoded is left out, and told once; where a process has nothing
    else in a batch, all processes leave that batch out.

    Args:
        settings: of the run.
        sources: what it is trained on.
        out: folder, made if it is not there.
        world: the processes there are; alone by default.
        resume: whether to go on with the run in ``out``, if there is one.
        console: the terminal.

    Returns:
        The figures of the last epoch, as the log has them; none of a run that was finished before.

    Raises:
        SettingsError: the settings do not fit the data, the processes, or the run that is resumed.
        CheckpointError: a checkpoint cannot be read or written; one that is there stays.
        TrainingError: the loss is not finite, or the log cannot be written; the checkpoint stays.
        Interrupted: after SIGTERM or SIGINT, when all is saved.
    """
    run = _Run(settings, sources, Path(out), world or World(), resume, console)
    try:
        return run.go()
    except OSError as error:
        raise TrainingError(f"out: cannot write into {str(out)!r}: {error}") from error


class _Run:
    """What :func:`train` does, and everything it needs at hand."""

    def __init__(
        self,
        settings: Settings,
        sources: Sources,
        out: Path,
        world: World,
        resume: bool,
        console: Console | None,
    ) -> None:
        self.settings, self.sources, self.out, self.world = settings, sources, out, world
        self.console = console or Console(stderr=True)
        self.path = out / CHECKPOINT
        self.steps, self.batch_size = divide(len(sources.training), settings, world)
        there = world.on_main(lambda: open_folder(out, self.path, resume))
        saved = read_run(self.path) if there else None
        self.notes = [] if saved is None else compare(saved, settings, sources, world)
        self.trainer = Trainer(settings, sources.num_classes, world, start=saved is None)
        self.pending: dict[int, Tensor] = {}  # losses of steps, on their way from the device
        if saved is None:
            self.progress = Progress()
            self.notes += self.trainer.notes
        else:
            self.progress = Progress(**saved["progress"])
            self.trainer.load_state(saved)

    def go(self) -> dict[str, Any]:
        """Train the epochs that are left."""
        progress, settings = self.progress, self.settings
        log = Silent()
        if self.world.is_main:
            log = Log(self.out, progress.log_size, self._position(), self.console)
        with log as self.log, Interruption() as self.interruption:
            for note in self.notes:
                log.say(note)
            if progress.finished:
                log.say(f"{self.path}: the run is finished")
                return {}
            self.training, self.sampler = training_loader(
                self.sources.training, self.batch_size, settings, self.world
            )
            if self.sources.validation is not None:
                self.validation = validation_loader(
                    self.sources.validation, self.batch_size, settings, self.world
                )
            while progress.epoch < settings.epochs:
                if progress.step < self.steps:
                    self._train_epoch()
                figures = self._finish_epoch()
            self._write_weights("last")
            progress.finished = True
            self._save()
            return figures

    def _position(self) -> int:
        """Steps of the whole run that are done."""
        return self.progress.epoch * self.steps + self.progress.step

    def _train_epoch(self) -> None:
        progress, settings = self.progress, self.settings
        done = progress.step * settings.accumulate * self.batch_size
        self.sampler.set_epoch(progress.epoch, done)
        left = self.steps - progress.step
        batches = Watched(groups(self.training, settings.accumulate, left))
        pace, clock = Pace(batches), Clock(progress.seconds)
        for group in batches:
            group, total, stop = self._agree(group)
            if group:
                self._step(group, total)
            pace.clips += total
            progress.step += 1
            progress.seconds = clock.seconds()
            if progress.step % settings.log_interval == 0 or progress.step == self.steps:
                self._tell_steps(pace)
                pace = Pace(batches)
            if stop:
                self._save()
                raise self._interrupted(stop)
            due = settings.save_interval and progress.step % settings.save_interval == 0
            if due and progress.step < self.steps:
                self._save()
        self._save()  # so that nothing is lost during the validation

    def _agree(self, batches: Sequence[Batch]) -> tuple[list[Batch], int, int]:
        """What all processes do next.

        Returns:
            The batches of which every process has some clip, the number of all their clips, and the
            signal to stop by or 0.
        """
        known = self.progress.broken
        broken = [b for batch in batches for b in batch.broken if str(b.path) not in known]
        counts = [len(batch.clips) for batch in batches]
        signum = self.interruption.signum
        fresh, *sums = self.world.sum(
            len(broken),
            *(signum == number for number in _SIGNALS),
            *counts,
            *(count == 0 for count in counts),
        )
        if fresh:
            self._tell_broken(broken)
        stops, sums = sums[: len(_SIGNALS)], sums[len(_SIGNALS) :]
        stop = next((number for number, asked in zip(_SIGNALS, stops, strict=True) if asked), 0)
        clips, empty = sums[: len(batches)], sums[len(batches) :]
        kept = [index for index in range(len(batches)) if not empty[index]]
        return [batches[index] for index in kept], int(sum(clips[index] for index in kept)), stop

    def _step(self, batches: Sequence[Batch], total: int) -> None:
        at = self._position()
        self.lr = self.trainer.rate(at, self.steps)
        loss, self.norm = self.trainer.step(batches, total, at, self.lr)
        self.pending[at + 1] = loss

    def _fetch(self) -> None:
        """Take the pending losses from the device; the means over all processes."""
        if not self.pending:
            return
        sums = self.world.sum(*torch.stack([*self.pending.values()]).tolist())
        for step, loss in zip(self.pending, sums, strict=True):
            if not math.isfinite(loss):
                left = f"{str(self.path)!r} is as it was" if self.path.exists() else "none is saved"
                raise TrainingError(
                    f"the loss of step {step} is {loss}: a lower lr, clip_grad or amp=null may "
                    f"help; of checkpoints, {left}"
                )
            self.progress.losses.append(loss / self.world.size)
        self.pending.clear()

    def _tell_steps(self, pace: Pace) -> None:
        self._fetch()
        progress, losses = self.progress, self.progress.losses
        if not losses:  # nothing but broken videos
            return
        figures = {
            "epoch": progress.epoch + progress.step / self.steps,
            "loss": math.fsum(losses) / len(losses),
            "lr": self.lr,
            "grad_norm": None if self.norm is None else self.norm.item(),
            **pace.figures(),
            "time": progress.seconds,
        }
        progress.epoch_loss += math.fsum(losses)
        progress.epoch_steps += len(losses)
        losses.clear()
        self.log.record("step", self._position(), figures)
        self.log.show(
            f"epoch {progress.epoch + 1}/{self.settings.epochs}",
            self._position(),
            self.settings.epochs * self.steps,
            f"loss {figures['loss']:.3f}  lr {self.lr:.1e}  {figures['clips_per_second']:.1f} "
            f"clips/s  {figures['waiting']:.0%} waiting",
        )

    def _tell_broken(self, broken: Sequence[Broken]) -> None:
        for entry in (entry for part in self.world.gather(list(broken)) for entry in part):
            path = str(entry.path)
            if path in self.progress.broken:
                continue
            self.progress.broken.append(path)
            self.log.record("broken", self._position(), {"path": path, "reason": entry.reason})
            self.log.say(f"left out: {entry.reason}")

    def _finish_epoch(self) -> dict[str, Any]:
        """Validate, keep the best weights, tell, and go on to the next epoch."""
        progress = self.progress
        figures = {"epoch": progress.epoch + 1, "loss": progress.mean_loss()}
        if self.sources.validation is not None:
            accuracy = self._validate()
            figures |= accuracy.summary()
            if accuracy.top1 > progress.best:
                progress.best = accuracy.top1
                self._write_weights("best", accuracy)
        figures |= {"broken": len(progress.broken), "time": progress.seconds}
        self.log.record("epoch", self._position(), figures)
        shown = (f"{name} {figures[name]:.2f} %" for name in ("top1", "top5") if name in figures)
        told = ", ".join((f"loss {figures['loss']:.4f}", *shown, f"{progress.seconds:.0f} s"))
        self.log.say(f"epoch {progress.epoch + 1}/{self.settings.epochs}: {told}")
        progress.next_epoch()
        return figures

    def _validate(self) -> Accuracy:
        loader, count = self.validation

        def check(number: int) -> None:
            self.log.show(
                f"validation {number}/{count}", self._position(), self.settings.epochs * self.steps
            )
            asked = self.world.sum(*(self.interruption.signum == one for one in _SIGNALS))
            for signum, by in zip(_SIGNALS, asked, strict=True):
                if by:
                    raise self._interrupted(signum)

        accuracy, broken = self.trainer.validate(loader, count, check)
        known = self.progress.broken
        self._tell_broken([entry for entry in broken if str(entry.path) not in known])
        return accuracy

    def _interrupted(self, signum: int) -> Interrupted:
        return Interrupted(signum, f"stopped, and saved in {str(self.path)!r}; --resume goes on")

    def _save(self) -> None:
        self._fetch()
        self.progress.log_size = self.log.sync()
        state = {
            **self.trainer.state(),
            "progress": asdict(self.progress),
            "settings": asdict(self.settings),
            "facts": facts_of(self.sources),
            "world_size": self.world.size,
        }
        self.world.on_main(lambda: write_run(self.path, state))

    def _write_weights(self, name: str, accuracy: Accuracy | None = None) -> None:
        """The weights that are tested, and the confusion matrix that goes with them."""
        weights = self.trainer.weights()

        def write() -> None:
            with replacing(self.out / f"{name}.safetensors") as path:
                write_checkpoint(path, weights, self.trainer.metadata(self.sources.class_names))
            if accuracy is not None:
                write_confusion(self.out, accuracy.confusion, self.sources.class_names)

        self.world.on_main(write)
