"""Argument checks the operators share: every error names the argument, what fits, what came."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def shape(operator: str, name: str, tensor: Tensor, expected: Sequence[int | str]) -> None:
    """``expected`` has an int where the size is fixed and a letter where any size does."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{operator}: {name}: expected a tensor, got {type(tensor).__name__}")
    sizes = tensor.shape
    if len(sizes) == len(expected):
        for size, want in zip(sizes, expected, strict=True):
            if not isinstance(want, str) and size != want:
                break
        else:
            return
    wanted = ", ".join(str(size) for size in expected)
    raise ValueError(f"{operator}: {name}: expected [{wanted}], got {list(sizes)}")


def at_least_1d(operator: str, name: str, tensor: Tensor) -> None:
    """``tensor`` has a last axis."""
    if tensor.dim() == 0:
        raise ValueError(f"{operator}: {name}: expected [..., C], got a tensor without axes")


def floating(operator: str, name: str, tensor: Tensor) -> None:
    """``tensor`` is a tensor of a floating dtype the operators compute in."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{operator}: {name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        wanted = ", ".join(str(dtype) for dtype in FLOATS)
        raise TypeError(f"{operator}: {name}: expected one of {wanted}, got {tensor.dtype}")


def alike(operator: str, first: tuple[str, Tensor], **others: Tensor | None) -> None:
    """Every tensor of ``others`` has the dtype and device of ``first``."""
    name, tensor = first
    dtype = tensor.dtype
    for other, value in others.items():
        if value is not None and value.dtype != dtype:
            raise TypeError(f"{operator}: {other}: expected {dtype} like {name}, got {value.dtype}")
    alongside(operator, first, **others)


def alongside(operator: str, first: tuple[str, Tensor], **others: Tensor | None) -> None:
    """Every tensor of ``others`` is floating and on the device of ``first``."""
    name, tensor = first
    device = tensor.device
    for other, value in others.items():
        if value is None:
            continue
        floating(operator, other, value)
        if value.device != device:
            raise ValueError(
                f"{operator}: {other}: expected on {device} like {name}, got {value.device}"
            )


def apart(residual: Tensor | None, x: Tensor) -> Tensor | None:
    """The residual; where it is ``x`` a view: torch.compile takes no tensor twice."""
    return residual.view_as(residual) if residual is x else residual


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in autocast's dtype where autocast is on for their device, as convolutions are.

    float64 tensors stay as they are, as in PyTorch.
    """
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off for the device of ``tensor``, where there is autocast."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
