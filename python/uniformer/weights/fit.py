"""Compare weights with a model's, and make them its own where it is known how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .dialects import CLASSIFIERS, EXCHANGES, Translation, matches
from .files import describe


@dataclass(frozen=True)
class Fit:
    """What a model takes of some weights.

    Args:
        values: the model's keys that are filled, and with what.
        inflated: those of them that were kernels of images.
        dropped: the file's keys that are left over, rightly.
        missing: the model's keys that keep their values, rightly.
        problems: everything else that does not fit, a line each.
        only_classifiers: whether that is about nothing but classifiers.
        takes_classifier: whether the classifier is among what is filled.
    """

    values: dict[str, Tensor]
    inflated: tuple[str, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    problems: tuple[str, ...]
    only_classifiers: bool
    takes_classifier: bool


def fit(
    translation: Translation, own: Mapping[str, Tensor], *, head: str = "take", inflation: str
) -> Fit:
    """Compare translated weights with a model's.

    Args:
        translation: the weights.
        own: the model's state dict.
        head: ``"take"`` the weights' classifiers, or ``"drop"`` them.
        inflation: ``"average"`` or ``"centre"``.
    """
    came, names = translation.state, translation.names
    applying = [exchange for exchange in EXCHANGES if exchange.applies(came, own)]
    dropping = CLASSIFIERS if head == "drop" else ()
    lacks = (*dropping, *(p for e in applying for p in e.lacks))
    carries = (*dropping, *(p for e in applying for p in e.carries))
    inflates = any(exchange.inflates for exchange in applying)

    values, inflated, different = {}, [], []
    taken = [key for key in own if key in came and not matches(key, dropping)]
    for key in taken:
        value = came[key]
        if inflates and _flat(own[key]) == describe(value):
            inflated.append(key)
            value = inflate(value.to(own[key].dtype), own[key].shape[2], inflation)
        if describe(own[key]) != describe(value):
            different.append(key)
        values[key] = value
    absent = [key for key in own if key not in values]
    extra = [key for key in came if key not in values]
    missing = [key for key in absent if not matches(key, lacks)]
    unexpected = [key for key in extra if not matches(key, carries)]
    return Fit(
        values,
        tuple(inflated),
        (*translation.dropped, *(names[key] for key in extra if key not in unexpected)),
        tuple(key for key in absent if key not in missing),
        (
            *(f"missing     {key} {describe(own[key])}" for key in missing),
            *(f"unexpected  {names[key]} {describe(came[key])}" for key in unexpected),
            *(
                f"different   {key}: expected {describe(own[key])}, got {describe(came[key])}"
                for key in different
            ),
        ),
        all(matches(key, CLASSIFIERS) for key in (*missing, *unexpected, *different)),
        any(matches(key, CLASSIFIERS) for key in values),
    )


def _flat(kernel: Tensor) -> str | None:
    """What describes the kernel of images that this one of clips is made from."""
    return describe(kernel.select(2, 0)) if kernel.dim() == 5 else None


def inflate(kernel: Tensor, frames: int, inflation: str) -> Tensor:
    """A kernel of images ``[O, I, h, w]`` as one of clips ``[O, I, frames, h, w]``.

    Args:
        kernel: the kernel.
        frames: its new length.
        inflation: ``"average"``, the same everywhere, in sum the kernel: what a still clip gives is
            what its frame gave; ``"centre"``, the kernel in the middle and 0 around it.
    """
    if inflation == "average":
        return (kernel / frames).unsqueeze(2).expand(-1, -1, frames, -1, -1)
    clip = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    clip[:, :, frames // 2] = kernel
    return clip


def head_dim_of(model: nn.Module) -> int | None:
    """Channels of a model's attention heads, ``None`` when it is not one of ours."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            return module.head_dim
        if (qkv := getattr(getattr(module, "attn", None), "qkv", None)) and hasattr(
            module, "num_heads"
        ):
            return qkv.in_features // module.num_heads
    return None


def released_head_dims(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The head sizes of the released weights with these keys and shapes; none if unknown."""
    qkv = state.get("blocks3.0.attn.qkv.weight", torch.empty(0))
    # Token labeling and the overlapping stem exist with both sizes, everything else with one.
    both = "aux_head.weight" in state or "patch_embed2.proj.0.weight" in state
    return {224: (28,), 256: (32,), 320: (32, 64) if both else (64,), 448: (64,)}.get(
        qkv.shape[-1], ()
    )
