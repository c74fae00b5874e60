"""Load checkpoints of every dialect; save our own."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from .classes import Classes, arrange
from .dialects import translate
from .files import CheckpointError, Metadata, read_checkpoint, write_checkpoint
from .fit import Fit, fit, head_dim_of, released_head_dims


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Args:
        path: the file.
        taken: the model's keys that were filled.
        dialect: whose names the file has.
        inflated: those of the keys taken that were kernels of images.
        inflation: how they were made kernels of clips.
        dropped: the file's keys that nothing was done with.
        missing: the model's keys that keep their values.
        class_names: of the model's classes, in order, if the file or the caller named them.
    """

    path: str
    taken: tuple[str, ...]
    dialect: str = "official"
    inflated: tuple[str, ...] = ()
    inflation: str = "average"
    dropped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None

    def __str__(self) -> str:
        inflated = f", {len(self.inflated)} of them inflated ({self.inflation})"
        return "\n".join(
            (
                f"{self.path}: {self.dialect} weights",
                f"  taken    {len(self.taken)}{inflated if self.inflated else ''}",
                f"  dropped  {_summary(self.dropped)}",
                f"  missing  {_summary(self.missing)}",
            )
        )


def _summary(keys: Sequence[str]) -> str:
    shown = [*keys[:4], "..."] if len(keys) > 5 else keys
    return f"{len(keys)}: {', '.join(shown)}" if keys else "0"


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    head: str = "take",
    inflation: str | None = None,
    head_dim: int | None = None,
    classes_from: Classes | None = None,
    classes_to: Classes | None = None,
) -> LoadReport:
    """Fill a model's parameters and buffers from a checkpoint in any dialect.

    Official weights, mmaction2's and OpenAI CLIP's are told by their keys; kernels of images are
    inflated for video models. Everything in the file has to be taken and everything in the model
    filled, but for what the one kind of weights is known to carry or lack for the other: CLIP has
    no global blocks, a dense backbone takes no classifier. Values are converted to the model's
    dtypes and copied to its devices.

    Args:
        model: the model; unchanged when the load fails.
        path: a ``.pth`` or ``.safetensors`` file, as :func:`read_state_dict` takes.
        head: ``"take"`` the file's classifiers, or ``"drop"`` them and leave the model's.
        inflation: how kernels of images become kernels of clips: ``"average"``, the official way
            with UniFormer, or ``"centre"``, the way with UniFormerV2 and of mmaction2; by default
            the way of the file's dialect.
        head_dim: channels of an attention head in the file's model; no shape tells them. Our own
            files say it. Where nobody does and weights with either size exist, there is a warning.
        classes_from: names of the file's classes in order, or a file of them, one a line or
            ``name<TAB>number``; our own files say them.
        classes_to: names of the model's classes, likewise, or the numbers of the file's rows to
            take, as mmaction2's maps of Kinetics-710 list them in JSON.

    Raises:
        CheckpointError: the file cannot be read; its keys or shapes are not the model's: the
            message lists every one that is missing, unexpected or different; its heads are of
            another size; the lists of classes do not fit; or ``head`` or ``inflation`` is none of
            the values there are.
    """
    for name, value, allowed in (
        ("head", head, ("take", "drop")),
        ("inflation", inflation, (None, "average", "centre")),
    ):
        if value not in allowed:
            raise CheckpointError(
                f"load_checkpoint: {name}: expected one of {allowed}, got {value!r}"
            )
    if head == "drop" and (classes_from is not None or classes_to is not None):
        raise CheckpointError("load_checkpoint: classes_from, classes_to: no use with head='drop'")
    path, own = os.fsdecode(path), model.state_dict()
    state, metadata = read_checkpoint(path)
    found = translate(state)
    class_names = None
    if head == "take":
        named = metadata.class_names if classes_from is None else classes_from
        arranged, class_names = arrange(found.state, named, classes_to)
        found = replace(found, state=arranged)
    inflation = inflation or found.dialect.inflation
    fitted = fit(found, own, head=head, inflation=inflation)
    if fitted.problems:
        raise CheckpointError(_misfit(model, path, fitted))
    _check_head_dim(model, path, released_head_dims(found.state), head_dim, metadata.head_dim)
    model.load_state_dict({**own, **fitted.values}, strict=True)
    return LoadReport(
        path=path,
        taken=tuple(fitted.values),
        dialect=found.dialect.name,
        inflated=fitted.inflated,
        inflation=inflation,
        dropped=fitted.dropped,
        missing=fitted.missing,
        class_names=class_names if fitted.takes_classifier else None,
    )


def _misfit(model: nn.Module, path: str, fitted: Fit) -> str:
    lines = [f"checkpoint: expected the keys and shapes of {type(model).__name__}, got {path!r}:"]
    lines += fitted.problems
    if fitted.only_classifiers:
        lines.append(
            "(head='drop' leaves the model's classifiers, classes_to chooses among classes)"
        )
    return "\n  ".join(lines)


def _check_head_dim(
    model: nn.Module, path: str, released: Sequence[int], *known: int | None
) -> None:
    """Hold a model's heads to those of the weights, which their shapes do not tell."""
    own, sizes = head_dim_of(model), [size for size in known if size is not None]
    if own is None:
        return
    if other := [size for size in sizes if size != own]:
        raise CheckpointError(
            f"checkpoint: expected weights for the model's head_dim={own}, got {path!r}: "
            f"head_dim={other[0]}"
        )
    if not sizes and released and released != (own,):
        warnings.warn(
            f"{path}: no shape tells head_dim; released weights like these have "
            f"{' or '.join(map(str, released))}, and the model's {own} is taken for theirs. "
            f"A wrong one loads too, but predicts worse: load_checkpoint(..., head_dim={own}) "
            f"says it is right",
            stacklevel=_callers_level(),
        )


def _callers_level() -> int:
    """The stack level, for the function calling this, of the code that called this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("uniformer."):
        frame, level = frame.f_back, level + 1
    return level


def save_checkpoint(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    class_names: Classes | None = None,
    dialect: str | None = None,
    source: str | None = None,
) -> None:
    """Write a model's weights as ``.safetensors``, with what their shapes do not tell.

    The keys are the official ones. The file says the ``create_model`` call, ``head_dim``, and what
    is given here; ``load_checkpoint`` checks it. A file already there is replaced when the new one
    is whole.

    Args:
        model: the model.
        path: ends in ``.safetensors``.
        class_names: of the model's classes in order, or a file of them.
        dialect, source: of the file the weights came from, if any.

    Raises:
        CheckpointError: the path ends otherwise, the names are not one for each class, or the file
            cannot be written.
    """
    state, names = model.state_dict(), None
    if class_names is not None:
        _, names = arrange(state, class_names, None)
    created = getattr(model, "pretrained_cfg", {})
    metadata = Metadata(
        model=created.get("architecture"),
        keywords=created.get("keywords", {}),
        head_dim=head_dim_of(model),
        class_names=names,
        dialect=dialect,
        source=source,
    )
    write_checkpoint(path, state, metadata)
