"""Joint attention with packed queries, keys and values, of a model with UniFormer's blocks.

Where a block runs its own forward, because an adapter or a hook sits in it, its attention is still
served: the linear layers are called as modules.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..blocks import has_hooks
from ..ops import joint_attention
from . import structure as s
from .family import Family
from .probe import Inputs, Random
from .swap import Swapped


class AttentionForward(Swapped):
    _accelerated_as = "joint_attention"

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.dim() != 3 or _weights_are_seen(self):
            return super().forward(x)
        y = joint_attention(self.qkv(x), self.num_heads, scale=getattr(self, "scale", None))
        y, drop = self.proj(y), self._modules.get("proj_drop")
        return y if drop is None else drop(y)


def _weights_are_seen(attn: nn.Module) -> bool:
    """Whether a dropout or a hook wants the softmax, which is never written out."""
    drop = attn._modules.get("attn_drop")
    if drop is None:
        return False
    return bool(has_hooks(drop) or _has_any_global_hook() or (drop.training and drop.p))


def _is_attention(m: nn.Module) -> bool:
    return s.has(m, "qkv", "proj") and hasattr(m, "num_heads")


def _declines(m: nn.Module) -> str | None:
    C = getattr(m.qkv, "in_features", 0)
    if s.stores_globals(m):
        return "its forward leaves something in global variables"
    drop = s.part(m, "attn_drop")
    if drop is not None and not isinstance(drop, nn.Dropout):
        return f"attn_drop: expected an nn.Dropout, got {s.name_of(drop)}"
    layers = {"qkv": s.linear(C, 3 * C), "proj": s.linear(C, C)}
    return s.mismatch(m, layers) or s.head_scale(m, C)


def _tokens(m: nn.Module, random: Random) -> Inputs:
    yield (random.normal(2, 5, m.qkv.in_features),)


FAMILIES = [Family("attention", _is_attention, _declines, AttentionForward, _tokens)]
