"""Which model weights are of; and weights of any dialect to a file of ours, that says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import create_model, list_models, model_keywords
from .checkpoint import LoadReport, load_checkpoint, save_checkpoint
from .classes import Classes, read_classes
from .dialects import Translation, translate
from .files import CheckpointError, read_checkpoint
from .fit import fit, head_dim_of


def _size(state: Mapping[str, Tensor], axis: int, rank: int, *keys: str) -> int | None:
    """Size of the first of some weights along an axis; ``None`` if it has not this rank."""
    value = next((state[key] for key in keys if key in state), torch.empty(0))
    return value.shape[axis] if value.dim() == rank else None


def _count(state: Mapping[str, Tensor], prefix: str, suffix: str) -> int:
    return sum(key.startswith(prefix) and key.endswith(suffix) for key in state)


def _classes(state: Mapping[str, Tensor]) -> int | None:
    return _size(state, 0, 2, "head.weight", "transformer.proj.2.weight")


def _channels(state: Mapping[str, Tensor]) -> int | None:
    stems = ("patch_embed1.proj.weight", "patch_embed1.proj.0.weight", "conv1.weight")
    return _size(state, 1, 4, *stems) or _size(state, 1, 5, *stems)


def _local_mhra(state: Mapping[str, Tensor]) -> str | None:
    if "transformer.temporal_cls_token" not in state:
        return None
    numbers = [n for n in (1, 2) if f"transformer.resblocks.0.lmhra{n}.pos_embed.0.bias" in state]
    return ("none", "single", "double")[len(numbers)]


def _return_layers(state: Mapping[str, Tensor]) -> list[int] | None:
    layers = _count(state, "transformer.resblocks.", ".ln_1.weight")
    gathered = _count(state, "transformer.dpe.", ".weight")
    return list(range(layers - gathered, layers)) if gathered else None


_SEEN: dict[str, Callable[[Mapping[str, Tensor]], Any]] = {
    "num_classes": _classes,
    "in_chans": _channels,
    "attention": lambda s: "divided" if "blocks3.0.t_attn.qkv.weight" in s else None,
    "temporal_patch": lambda s: _size(s, 2, 5, "patch_embed2.proj.weight") == 3 or None,
    "layer_scale_init": lambda s: 0.1 if "blocks1.0.gamma_1" in s else None,
    "temporal_downsample": lambda s: _size(s, 2, 5, "conv1.weight") == 3 or None,
    "local_mhra": _local_mhra,
    "return_layers": _return_layers,
    "frozen": lambda s: (
        ("transformer.dec.0.ln_3.weight" in s and "transformer.balance" not in s) or None
    ),
}
"""Keywords of models that keys and shapes tell; ``None``: as the model's default is."""


def convert_checkpoint(
    path: str | os.PathLike,
    out: str | os.PathLike,
    **options: Any,
) -> LoadReport:
    """Write a checkpoint of any dialect as ``.safetensors`` that says model, head size and classes.

    Args:
        path, out: the files.
        **options: as :func:`model_from_checkpoint` takes them.

    Raises:
        CheckpointError: several models have these weights or none, or as for ``load_checkpoint``.
    """
    built, report = model_from_checkpoint(path, **options)
    save_checkpoint(
        built,
        out,
        class_names=report.class_names,
        dialect=report.dialect,
        source=os.path.basename(os.fsdecode(path)),
    )
    return report


def model_from_checkpoint(
    path: str | os.PathLike,
    *,
    model: str | None = None,
    keywords: Mapping[str, Any] | None = None,
    classes_from: Classes | None = None,
    classes_to: Classes | None = None,
    **options: Any,
) -> tuple[nn.Module, LoadReport]:
    """Build the model that a checkpoint of any dialect is of, and fill it.

    Args:
        path: the file.
        model: its name, where keys and shapes, and the file itself, do not tell.
        keywords: of ``create_model``, where they do not.
        classes_from, classes_to, **options: as :func:`load_checkpoint` takes them.

    Returns:
        The model, in training mode, and what the load did.

    Raises:
        CheckpointError: several models have these weights or none, or as for ``load_checkpoint``.
    """
    state, metadata = read_checkpoint(path)
    found = translate(state)
    seen = {keyword: tell(found.state) for keyword, tell in _SEEN.items()}
    if classes_to is not None:
        seen["num_classes"] = len(read_classes(classes_to))
    if options.get("head") == "drop":
        seen["num_classes"] = None
    seen = {keyword: value for keyword, value in seen.items() if value is not None}
    if model in (None, metadata.model):
        seen = {**metadata.keywords, **seen}
        model = metadata.model or _recognise(found, {**seen, **(keywords or {})}, path)
    try:
        taken = {key: value for key, value in seen.items() if key in model_keywords(model)}
        built = create_model(model, **{**taken, **(keywords or {})})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {error}") from error
    report = load_checkpoint(
        built,
        path,
        head_dim=head_dim_of(built),
        classes_from=classes_from,
        classes_to=classes_to,
        **options,
    )
    return built, report


def _recognise(found: Translation, seen: Mapping[str, Any], path: str | os.PathLike) -> str:
    """The one model with these weights; with more or less to it, if none has just these."""
    exact: list[str] = []
    near: list[str] = []
    for name in list_models():
        taken = {key: value for key, value in seen.items() if key in model_keywords(name)}
        try:
            with torch.device("meta"):
                own = create_model(name, **taken).state_dict()
        except (TypeError, ValueError):  # a keyword has another meaning in this model
            continue
        fitted = fit(found, own, inflation=found.dialect.inflation)
        if not fitted.problems:
            (near if fitted.inflated or fitted.missing else exact).append(name)
    candidates = exact or near
    if len(candidates) != 1:
        there = ", ".join(candidates) or "none"
        raise CheckpointError(
            f"checkpoint: expected the weights of one model, got {os.fsdecode(path)!r}: these have "
            f"such keys and shapes: {there}; name the model (--model)"
        )
    return candidates[0]
