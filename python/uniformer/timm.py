"""The models under their names in timm, when that is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .registry import create_model, list_models


def register_in_timm(register_model: Callable[[Callable[..., nn.Module]], Any]) -> None:
    """Hand every model's entry point to timm's ``register_model``."""
    for name in list_models():
        register_model(_entry_point(name))


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **keywords: Any,
    ) -> nn.Module:
        if pretrained:
            raise ValueError(f"{name}: pretrained: no weights to download; pass checkpoint=path")
        return create_model(name, **keywords)

    # What timm registers by, and puts into the module's __all__.
    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"``uniformer.create_model({name!r}, ...)``."
    return create
