"""Triton's interpreter without what takes half of its time here and changes no result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def hasten() -> None:
    """To be called once, before any kernel runs."""
    # Every sum and product of integers is computed again in 64 bits, to see whether it overflows.
    # At the sizes of tests an offset cannot, and a key that did would select wrong tokens.
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter._patch_lang = _once_a_launch(interpreter._patch_lang)


def _once_a_launch(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A launch gives the language its interpreted meaning; all functions it calls would, again."""
    patched: set[tuple[bool, ...]] = set()

    def patch_once(function: Any) -> Any:
        known = {id(value) for value in function.__globals__.values()}
        modules = tuple(id(module) in known for module in (tl, tl.core))
        if modules in patched:
            return None  # which only a launch asks for
        scope = patch(function)
        if not patched:
            restore = scope.restore

            def restored() -> None:
                patched.clear()
                restore()

            scope.restore = restored
        patched.add(modules)
        return scope

    return patch_once
