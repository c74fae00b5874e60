"""Models by name."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable
from os import PathLike
from typing import Any

from torch import nn

from .features import Features
from .weights import load_checkpoint

_MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {}


def register(**models: dict[str, Any]) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: ``name={keyword: value}`` makes the class with these keywords a model."""

    def decorate(cls: type[nn.Module]) -> type[nn.Module]:
        _MODELS.update({name: (cls, keywords) for name, keywords in models.items()})
        return cls

    return decorate


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, sorted; ``pattern`` is a shell pattern.

    >>> uniformer.list_models("uniformer_dense_x*")
    ['uniformer_dense_xs', 'uniformer_dense_xxs']
    """
    return sorted(fnmatch.filter(_MODELS, pattern))


def create_model(
    name: str,
    *,
    checkpoint: str | PathLike[str] | None = None,
    features_only: bool = False,
    memory: str = "fast",
    **keywords: Any,
) -> nn.Module:
    """Build a model in training mode, float32, with the official initialisation.

    >>> model = uniformer.create_model("uniformer_small", depths=(1, 1, 1, 1), num_classes=10)
    >>> model(torch.randn(2, 3, 64, 64)).shape
    torch.Size([2, 10])

    Args:
        name: one of ``list_models()``.
        checkpoint: file of weights to load.
        features_only: for the list of the maps of stages or layers instead of logits; then every
            model takes ``out_indices``, and tells ``feature_info``.
        memory: what training keeps of a block: ``"fast"`` what its backward pass needs, except the
            cheap that is computed again; ``"small"`` its input alone, and computes the block again.
        **keywords: of the model's class; the classifiers take ``num_classes``, ``in_chans`` and
            ``drop_path_rate``, the video models also ``attention`` and ``temporal_patch``.

    Raises:
        ValueError: there is no such model, or a keyword's value is none of those there are.
        TypeError: the model takes no such keyword.
    """
    if memory not in ("fast", "small"):
        raise ValueError(f"create_model: memory: expected 'fast' or 'small', got {memory!r}")
    out_indices = keywords.pop("out_indices", None) if features_only else None
    from .models.facts import FACTS  # the models are registered here, so they come first

    accepted = model_keywords(name)
    cls, preset = model_class(name)
    if unknown := [keyword for keyword in keywords if keyword not in accepted]:
        raise TypeError(
            f"create_model: {name} takes no {', '.join(unknown)}; it takes {', '.join(accepted)}"
        )
    head_dim = keywords.get("head_dim")
    keywords = {**preset, **keywords}
    model = cls(**keywords)
    if memory == "small":
        model.set_grad_checkpointing()
    size = FACTS[name][0].input_size
    model.pretrained_cfg = {"architecture": name, "keywords": keywords, **model.data_cfg(size)}
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, head_dim=head_dim)
    return Features(model, out_indices) if features_only else model


def model_class(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a model, and the keywords that make it this one.

    Raises:
        ValueError: there is no such model.
    """
    if name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=3) or list_models()
        raise ValueError(f"create_model: name: no model {name!r}; there is {', '.join(close)}")
    return _MODELS[name]


def model_keywords(name: str) -> list[str]:
    """The keywords ``create_model`` takes for a model.

    Raises:
        ValueError: there is no such model.
    """
    return _keywords(model_class(name)[0])


def _keywords(cls: type) -> list[str]:
    """What a class's constructor takes; its ``**keywords`` are those of the next class's."""
    names: list[str] = []
    for base in cls.__mro__:
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in names]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names
