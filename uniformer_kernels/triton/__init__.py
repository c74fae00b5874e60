"""Triton kernels: the operators on NVIDIA GPUs, and in Triton's interpreter without one.

``library`` registers them, ``launch`` starts them, ``tuning`` says with which tile sizes; ``plan``
what would be started; every other file holds the kernels of one operator, and is imported, with
Triton, when one of them runs.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from . import tuning

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on CPU tensors; Triton decides this once, too."""

_CAPABILITY = (8, 0)


def declines(tensor: Tensor, name: str = "x") -> str | None:
    """Why no Triton kernel can serve a call whose first tensor this is, ``None`` when one can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if tensor.dtype == torch.float64:
        return f"{name} is float64"
    if tensor.device.type == "cuda":
        return _too_old(tensor.device)
    if tensor.is_meta and tuning.is_assumed():
        return None
    if tensor.device.type != "cpu" or not INTERPRETED:
        hint = " (TRITON_INTERPRET=1 tries it without a GPU)" if tensor.is_cpu else ""
        return f"{name} is on {tensor.device}{hint}"
    if tensor.dtype == torch.bfloat16:
        return f"{name} is bfloat16, which Triton's interpreter computes wrongly"
    return None


def _too_old(device: torch.device) -> str | None:
    if not torch.cuda.is_available():  # a fake tensor
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability >= _CAPABILITY:
        return None
    return f"{device} has compute capability {capability}, expected at least {_CAPABILITY}"
