"""Files of weights: read without executing anything in them, written whole or not at all."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WRAPPERS = ("model", "model_state", "state_dict")
"""Where the official trainers (DeiT style, PySlowFast, timm) put the weights in what they save."""

_ENTRY = "uniformer"
"""The entry of a safetensors header that holds our metadata, as JSON."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit; says which, what was expected and what came."""


@dataclass(frozen=True)
class Metadata:
    """What tensors do not tell; in our own files. ``None``: not known.

    Args:
        model, keywords: the ``create_model`` call.
        head_dim: channels of an attention head, which leaves no trace in shapes.
        class_names: of the classifier's rows, in order.
        dialect: of the file the weights came from.
        source: that file's name.
    """

    model: str | None = None
    keywords: dict[str, Any] = field(default_factory=dict)
    head_dim: int | None = None
    class_names: tuple[str, ...] | None = None
    dialect: str | None = None
    source: str | None = None

    def encode(self) -> dict[str, str]:
        """As a safetensors header takes it."""
        return {"format": "pt", _ENTRY: json.dumps(asdict(self), default=list)}

    @classmethod
    def decode(cls, header: Mapping[str, str]) -> Metadata:
        """From a safetensors header; empty when the file is not ours."""
        stored = json.loads(header.get(_ENTRY, "{}"))
        if not isinstance(stored, dict):
            raise ValueError("its metadata are not ours")
        known = cls(**{name: stored[name] for name in cls.__dataclass_fields__ if name in stored})
        names = known.class_names
        if not (
            isinstance(known.model, str | None)
            and isinstance(known.keywords, dict)
            and isinstance(known.head_dim, int | None)
            and (names is None or all(isinstance(name, str) for name in names))
        ):
            raise ValueError("its metadata are not ours")
        return cls(**{**vars(known), "class_names": None if names is None else tuple(names)})


def _read(path: str) -> tuple[object, Metadata]:
    if path.endswith(".safetensors"):
        from safetensors import safe_open  # optional: needed for these files only

        with safe_open(path, "pt") as file:
            metadata = Metadata.decode(file.metadata() or {})
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    # The official trainers save their command line, a Namespace, beside the weights.
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True), Metadata()


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, Tensor], Metadata]:
    """``read_state_dict``, and what the file says of its weights."""
    path = os.fsdecode(path)
    if not os.path.isfile(path):
        came = "a directory" if os.path.isdir(path) else "no such file"
        raise CheckpointError(
            f"checkpoint: expected a .pth or .safetensors file, got {path!r}: {came}"
        )
    try:
        state, metadata = _read(path)
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
        isinstance(key, str) and isinstance(value, Tensor) and not value.is_meta
        for key, value in state.items()
    ):
        raise CheckpointError(
            f"checkpoint: expected tensors by name, bare or under one of {', '.join(WRAPPERS)}, "
            f"got {path!r}: {describe(state)}"
        )
    if state and all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}, metadata
    return dict(state), metadata


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read the weights of a ``.safetensors`` or PyTorch (``.pth``) file, executing nothing in it.

    A state dict may stand bare or under ``model``, ``model_state`` or ``state_dict``; a ``module.``
    in front of every key is dropped.

    Raises:
        CheckpointError: the file is missing, damaged, refused, or holds no state dict.
    """
    return read_checkpoint(path)[0]


def write_checkpoint(
    path: str | os.PathLike, state: Mapping[str, Tensor], metadata: Metadata
) -> None:
    """Write a ``.safetensors`` file; until it is whole, a file already there stays.

    Raises:
        CheckpointError: the name ends otherwise, or it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(os.fsdecode(path))
    if path.suffix != ".safetensors":
        raise CheckpointError(f"save_checkpoint: path: expected a .safetensors name, got '{path}'")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, unfinished, metadata.encode())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"save_checkpoint: path: cannot write '{path}': {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def is_plain(value: Tensor) -> bool:
    """Whether a tensor's elements lie in memory as numbers, neither sparse nor quantised."""
    return value.layout is torch.strided and not value.is_quantized


def describe(value: object) -> str:
    """What has to agree for one value to be loaded in place of another."""
    if isinstance(value, Tensor):
        kind = "float" if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
        return f"{'' if is_plain(value) else 'packed '}{kind} {list(value.shape)}"
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, list(value)[:5]))
        return f"a mapping with {len(value)} keys: {keys}{', ...' if len(value) > 5 else ''}"
    return f"a {type(value).__name__}"
