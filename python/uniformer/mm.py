"""The models in a registry of mmengine, for mmaction2, mmdetection and mmsegmentation.

In a configuration: ``backbone=dict(type="uniformer_dense_small", attention="hybrid")``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .models.base import DenseBackbone
from .models.v2 import UniFormerV2
from .registry import list_models, model_class
from .weights import load_checkpoint

FAMILIES = ("uniformer_dense_*", "uniformer_video_*", "uniformerv2_*")


def register_in_mmengine(registry: Any, pattern: str = "*") -> list[str]:
    """Put the dense and the video models into a registry like ``mmdet.registry.MODELS``.

    They take the keywords of ``create_model`` (no ``num_classes``: heads are the framework's) and
    ``init_cfg=dict(type="Pretrained", checkpoint=FILE)``, whose weights, of any dialect, the
    framework's ``init_weights`` loads. Keys are the official ones, as in mmaction2.

    Args:
        registry: has mmengine's ``register_module(name=..., module=...)``.
        pattern: which of them, a shell pattern.

    Returns:
        Their names.

    Raises:
        ValueError: none of them has such a name.
        KeyError: mmengine's, for a name that is taken.
    """
    names = [
        name
        for family in FAMILIES
        for name in list_models(family)
        if fnmatch.fnmatch(name, pattern)
    ]
    if not names:
        raise ValueError(f"pattern: expected one for dense or video models, got {pattern!r}")
    for name in names:
        registry.register_module(name=name, module=_builder(name))
    return names


class MMBackbone(nn.Module):
    """Goes in front of a model's class: the same model, as mmengine's frameworks call backbones.

    Dense models return their tuple of maps; UniFormer for video the map behind its last norm,
    ``[B, C, T, H, W]``; UniFormerV2 the video's normalised vector, ``[B, dim]``. These are what
    mmaction2's ports return.

    Args:
        init_cfg: ``dict(type="Pretrained", checkpoint=FILE)``; None leaves the initialisation.
        **keywords: of the model's class.

    Raises:
        ValueError: ``init_cfg`` is something else.
    """

    def __init__(self, *, init_cfg: dict[str, Any] | None = None, **keywords: Any) -> None:
        if init_cfg is not None and (
            init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg
        ):
            raise ValueError(
                f"init_cfg: expected dict(type='Pretrained', checkpoint=...), got {init_cfg}"
            )
        super().__init__(**keywords)
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Load the weights of ``init_cfg``, if any: the model has initialised itself."""
        if self.init_cfg is not None:
            load_checkpoint(self, self.init_cfg["checkpoint"], head="drop")

    def forward(self, x: Any) -> Tensor | tuple[Tensor, ...]:
        """Maps, a map or vectors, see above."""
        if isinstance(self, DenseBackbone):
            return super().forward(x)
        features = self.forward_features(x)
        if isinstance(self, UniFormerV2):
            return self.transformer.proj[0](features)
        return features.movedim(-1, 1).contiguous()


def _builder(name: str) -> Callable[..., nn.Module]:
    """A function of the model's keywords: registries build with functions as with classes."""
    cls, preset = model_class(name)
    headless = {} if issubclass(cls, DenseBackbone) else {"num_classes": 0}
    backbone = type(f"MM{cls.__name__}", (MMBackbone, cls), {"__doc__": cls.__doc__})

    def create(**keywords: Any) -> nn.Module:
        return backbone(**{**preset, **headless, **keywords})

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"``uniformer.create_model({name!r}, ...)`` as a backbone."
    return create
