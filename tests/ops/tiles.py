"""Other tile sizes than the tuned ones, so that small inputs have several blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from typing import Any


@contextlib.contextmanager
def attention_tiles(operator: str, backend: str, **options: Any) -> Iterator[None]:
    """Run the kernels of an attention inside the ``with`` with these options, where it has any."""
    with contextlib.ExitStack() as stack:
        if backend == "triton":
            import_module(f"uniformer_kernels.triton.{operator.removeprefix('joint_')}")
            kernels = import_module("uniformer_kernels.triton.tuning").KERNELS
            for suffix in ("", "_query_gradient", "_key_gradient"):
                stack.enter_context(kernels[operator + suffix].trying(**options))
        yield
