"""Load checkpoints as the official code saves them."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WRAPPERS = ("model", "model_state", "state_dict")
"""Where the official trainers (DeiT style, PySlowFast, timm) put the weights in what they save."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit; says which, what was expected and what came."""


@dataclass(frozen=True)
class LoadReport:
    """What a load did: from which file, and the keys of the model it filled."""

    path: str
    taken: tuple[str, ...]


def _read(path: str) -> object:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file  # optional: needed for these files only

        return load_file(path)
    # The official trainers save their command line, a Namespace, beside the weights.
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read the weights of a ``.safetensors`` or PyTorch (``.pth``) file, executing nothing in it.

    A state dict may stand bare or under ``model``, ``model_state`` or ``state_dict``; a ``module.``
    in front of every key is dropped.

    Raises:
        CheckpointError: the file is missing, damaged, refused, or holds no state dict.
    """
    path = os.fsdecode(path)
    if not os.path.isfile(path):
        came = "a directory" if os.path.isdir(path) else "no such file"
        raise CheckpointError(
            f"checkpoint: expected a .pth or .safetensors file, got {path!r}: {came}"
        )
    try:
        state = _read(path)
    except ImportError:
        raise
    except Exception as error:  # a damaged or hostile file fails in any way the readers can
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"checkpoint: expected a whole .pth (weights only) or .safetensors file, "
            f"got {path!r}: {reason}"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise CheckpointError(
            f"checkpoint: expected tensors by name, bare or under one of {', '.join(WRAPPERS)}, "
            f"got {path!r}: {_describe(state)}"
        )
    if state and all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def load_checkpoint(model: nn.Module, path: str | os.PathLike) -> LoadReport:
    """Fill all parameters and buffers of a model from a checkpoint in the official dialect.

    Values are converted to the model's dtypes and copied to its devices.

    Args:
        model: the model; unchanged when the load fails.
        path: a ``.pth`` or ``.safetensors`` file, as :func:`read_state_dict` takes.

    Raises:
        CheckpointError: the file cannot be read, or its keys or shapes are not the model's; the
            message lists every one that is missing, unexpected or different.
    """
    state, own = read_state_dict(path), model.state_dict()
    problems = [
        *(f"missing     {key} {_describe(own[key])}" for key in own if key not in state),
        *(f"unexpected  {key} {_describe(state[key])}" for key in state if key not in own),
        *(
            f"different   {key}: expected {_describe(own[key])}, got {_describe(state[key])}"
            for key in own
            if key in state and _describe(own[key]) != _describe(state[key])
        ),
    ]
    if problems:
        raise CheckpointError(
            f"checkpoint: expected the keys and shapes of {type(model).__name__}, "
            f"got {os.fsdecode(path)!r}:\n  " + "\n  ".join(problems)
        )
    model.load_state_dict(state, strict=True)
    return LoadReport(os.fsdecode(path), tuple(own))


def _describe(value: object) -> str:
    """What has to agree for one value to be loaded in place of another."""
    if isinstance(value, Tensor):
        kind = "float" if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
        plain = value.layout is torch.strided and not value.is_quantized
        return f"{'' if plain else 'packed '}{kind} {list(value.shape)}"
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, list(value)[:5]))
        return f"a mapping with {len(value)} keys: {keys}{', ...' if len(value) > 5 else ''}"
    return f"a {type(value).__name__}"
