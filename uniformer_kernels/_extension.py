"""Load the compiled operators, and say clearly what is wrong when they cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from .backends import chosen_backend

try:
    from . import _introspect  # type: ignore[attr-defined]
except ImportError:  # built for another Python, or not built: only what it tells is missing
    _introspect = None


def manifest() -> dict[str, Any]:
    """What the extension was built from and for; empty where there is none."""
    path = Path(__file__).with_name("manifest.json")
    return json.loads(path.read_text()) if path.exists() else {}


def _load() -> str | None:
    """Register the compiled operators; the reason when there are none."""
    path = Path(__file__).with_name("_C.abi3.so")
    if not path.exists():
        return (
            "the extension is not built (run `make build`, or install a wheel of this platform: "
            "what pip makes without a C++ compiler is pure Python)"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        built = manifest()
        reason = (
            f"uniformer_kernels: {path.name} cannot be loaded.\n"
            f"  built for: torch >= {built.get('torch_target', 'unknown')}, with torch "
            f"{built.get('torch', 'unknown')}, {built.get('platform', 'unknown platform')}\n"
            f"  running:   torch {torch.__version__}, Python {sys.version.split()[0]}\n"
            f"  the loader said: {error}\n"
            "Build it again (`make build`), or set UNIFORMER_KERNELS_BACKEND=reference to run "
            "without it."
        )
        if chosen_backend() == "reference":
            return reason
        raise ImportError(reason) from error
    return None


missing: str | None = _load()
"""Why there are no compiled operators, ``None`` when they are loaded."""
