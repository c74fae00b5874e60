"""A run's whole state in one file: written whole, read in any number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import AveragedModel

from ..weights import CheckpointError
from .files import replacing

CHECKPOINT = "checkpoint.pt"
FORMAT = 1
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_LOAD = StateDictOptions(full_state_dict=True)


def model_state(model: nn.Module) -> dict[str, Any]:
    """A model's parameters and buffers under their plain names, whole, on the main process.

    Every process has to take part.
    """
    return get_model_state_dict(model, options=_WHOLE)


def training_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: AveragedModel | None,
) -> dict[str, Any]:
    """All that a step changes, whole, on the main process. Every process has to take part."""
    # Before its first step an optimiser has no state, and asking for it makes up some.
    begun = bool(optimizer.state)
    return {
        "model": model_state(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_WHOLE) if begun else None,
        "scaler": scaler.state_dict(),
        "average": None if average is None else model_state(average),
    }


def load_training_state(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: AveragedModel | None,
) -> None:
    """Go back to where :func:`training_state` was taken, if in another number of processes."""
    set_model_state_dict(model, state["model"], options=_LOAD)
    if state["optimizer"] is not None:
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_LOAD)
    scaler.load_state_dict(state["scaler"])
    if average is not None:
        set_model_state_dict(average, state["average"], options=_LOAD)


def write_run(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; one already there stays until the new one is on the disk.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full.
    """
    try:
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:
        # PyTorch's writer tells what went wrong in the exception before its own.
        cause = error if isinstance(error, OSError) else error.__context__ or error
        kept = ", the one before is as it was" if path.exists() else ""
        raise CheckpointError(f"checkpoint: cannot write {str(path)!r}{kept}: {cause}") from error


def read_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run, executing nothing in it.

    Raises:
        CheckpointError: it cannot be read, or is none of a run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file fails in any way the reader can
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"checkpoint: cannot read {str(path)!r}: {reason}") from error
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint: expected one of a training run, got {str(path)!r}")
    return dict(state)
