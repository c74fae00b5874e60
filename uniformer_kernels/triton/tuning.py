"""Tile sizes and compiler options of every kernel: a table, and a default where no row fits.

``tuning.json`` is keyed by architecture, kernel and shape class; ``python -m
uniformer_kernels.tune`` measures and rewrites it. Nothing is tuned while a program runs, so a
call's result never depends on the clock.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("tuning.json")

Options = Mapping[str, Any]
"""Constants of a kernel, and ``num_warps`` and ``num_stages``."""

KERNELS: dict[str, Tunable] = {}
"""Every kernel that has options, by name."""

_assumed: ContextVar[str | None] = ContextVar("uniformer_kernels_architecture", default=None)

_asked: ContextVar[set[tuple[str, str]] | None] = ContextVar(
    "uniformer_kernels_asked", default=None
)


class Tunable:
    """The options of one kernel.

    Args:
        name: the kernel's in the table.
        space: what the tuner tries besides the default.
    """

    def __init__(self, name: str, space: Sequence[Options]) -> None:
        self.name, self.space = name, space
        self._tried: ContextVar[Options | None] = ContextVar(f"tried_{name}", default=None)
        KERNELS[name] = self

    def options(self, device: torch.device, shape_class: str, **default: Any) -> dict[str, Any]:
        """The options for a call: the default, and over it the table's row if there is one."""
        if (asked := _asked.get()) is not None:
            asked.add((self.name, shape_class))
        tried = self._tried.get()
        if tried is None:
            tried = row(device, self.name, shape_class)
        return default | dict(tried)

    @contextlib.contextmanager
    def trying(self, **options: Any) -> Iterator[None]:
        """Use these options inside the ``with``, whatever the table says."""
        token = self._tried.set(options)
        try:
            yield
        finally:
            self._tried.reset(token)


def row(device: torch.device, kernel: str, shape_class: str) -> Options:
    """What the table has for a kernel, if anything."""
    return rows(architecture(device)).get(kernel, {}).get(shape_class, {})


def rows(name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """All that the table has for an architecture, by kernel and shape class."""
    return _table().get(name, {})


@contextlib.contextmanager
def asking() -> Iterator[set[tuple[str, str]]]:
    """Collect which kernels' options are asked for inside the ``with``, and for which classes."""
    asked: set[tuple[str, str]] = set()
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


@contextlib.contextmanager
def assuming(name: str) -> Iterator[None]:
    """Choose options as on another architecture, e.g. ``"sm_90"``, to plan for it."""
    token = _assumed.set(name)
    try:
        yield
    finally:
        _assumed.reset(token)


def is_assumed() -> bool:
    """Whether a plan is made, not a computation."""
    return _assumed.get() is not None


def architecture(device: torch.device) -> str:
    """``"sm_90"``, say; ``"interpreter"`` where there is no GPU."""
    if (assumed := _assumed.get()) is not None:
        return assumed
    if device.type != "cuda" or not torch.cuda.is_available():
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def _table() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    return json.loads(TABLE.read_text())


def rewrite(name: str, rows: Mapping[str, Mapping[str, Options]]) -> None:
    """Put the rows of an architecture, by kernel and shape class, into the table."""
    table = _table() | {name: {kernel: dict(found) for kernel, found in sorted(rows.items())}}
    part = TABLE.with_suffix(".part")  # who is stopped meanwhile leaves the table there was
    part.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")
    part.replace(TABLE)
    _table.cache_clear()
