"""Models for inference: norms and layer scales become parts of the layers beside them."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from uniformer_kernels.blocks import pack

from .layers import Foldable
from .layers.basic import pointwise


def prepare(model: nn.Module) -> nn.Module:
    """A frozen copy of a model for inference, faster and with the same outputs.

    BatchNorm by running statistics and layer scales are folded into the layers beside them, so a
    local block is two operators. For a CPU whose products need it, the weights of linear layers are
    packed once, beside the weights themselves: as they are now, in dtype too; after another they
    are packed for every call again. A layer with hooks, or an adapter in its place, stays as it is.
    The copy works like the model, in ``torch.compile``, ``torch.export`` and CUDA graphs too; the
    model, its ``state_dict`` and its training are left alone.

    Args:
        model: in evaluation mode; one of ours, or one with ours inside, such as a detector.

    Returns:
        The copy. Called after a parameter or a statistic of ``model`` has changed, it raises
        ``RuntimeError``: prepare again, or delete ``model`` to keep the copy as it is. So it does
        when switched to training, and when weights are loaded into it.

    Raises:
        ValueError: the model is in training mode, even a part of it; or nothing in it is ours.
    """
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                "prepare: model: expected evaluation mode (call model.eval()), "
                f"got {name or type(model).__name__} in training mode"
            )
    if not any(type(m).__module__.split(".")[0] == __package__ for m in model.modules()):
        raise ValueError(
            f"prepare: model: expected a model with layers of uniformer, got {type(model).__name__}"
        )
    prepared = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        for module in list(prepared.modules()):
            if isinstance(module, Foldable):
                module.fold()
                for linear in pointwise(module):
                    pack(linear)
    prepared.register_forward_pre_hook(Guard(model))
    prepared.register_load_state_dict_pre_hook(_refuse_weights)
    return prepared


def _refuse_weights(*_: Any) -> None:
    raise RuntimeError(
        "load_state_dict: the model is prepared, its norms are folded: load the weights into the "
        "model it was prepared from, and prepare that again"
    )


class Guard:
    """Raises where a prepared model would compute something else than what it was prepared from."""

    def __init__(self, model: nn.Module | None) -> None:
        self.sources = (
            []
            if model is None
            else [
                (weakref.ref(owner), name, weakref.ref(tensor), _version(tensor))
                for owner in model.modules()
                for name, tensor in _tensors(owner).items()
            ]
        )

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module.training:
            raise RuntimeError("the model is prepared for inference: expected eval(), got train()")
        if torch.compiler.is_compiling():  # what is compiled has the weights it has
            return
        for owner, name, tensor, version in self.sources:
            if (source := owner()) is None:
                return  # the model is gone: it can no longer change
            now = source._parameters.get(name, source._buffers.get(name))
            if now is None or now is not tensor() or _version(now) != version:
                raise RuntimeError(
                    f"{type(source).__name__}.{name} has changed since the model was prepared: "
                    "prepare it again"
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        return self

    def __reduce__(self) -> tuple[type, tuple[None]]:
        return Guard, (None,)  # elsewhere there is no model that could change


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    owned = {**module._parameters, **module._buffers}
    return {name: t for name, t in owned.items() if t is not None}


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
