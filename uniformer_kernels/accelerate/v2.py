"""The blocks of UniFormerV2 on tokens-first tensors, ``[1 + HW, B * T, C]``.

The official and mmaction2's ``ResidualAttentionBlock`` and ``Extractor``: ``attn``, ``ln_1``,
``mlp``, ``ln_2``, and ``lmhra1``, ``lmhra2`` or ``ln_3``.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ..blocks import (
    Affine,
    BatchNorm,
    LayerNorm,
    TemporalMHRA,
    global_uniblock,
    local_uniblock,
)
from . import structure as s
from .family import Family
from .probe import Inputs, Random
from .swap import Swapped, original_class, untouched

_FRAMES = 8
_SIGNATURE = {"x": inspect.Parameter.empty, "T": _FRAMES, "use_checkpoint": False}


class LocalUniForward(Swapped):
    _accelerated_as = "local_uniblock"

    def forward(self, x: Tensor, T: int = _FRAMES, use_checkpoint: bool = False) -> Tensor:
        if use_checkpoint:
            return super().forward(x, T, use_checkpoint)
        if x.dim() != 3 or x.shape[1] % T or not untouched(self):
            return super().forward(x, T)
        side = int((x.shape[0] - 1) ** 0.5)
        y = local_uniblock(
            x.unflatten(1, (-1, T)).permute(1, 2, 0, 3),
            grid=(side, side),
            lmhra1=_aggregator(self, "lmhra1"),
            lmhra2=_aggregator(self, "lmhra2"),
            **_layers(self),
            drop_path=s.drop_path_rate(self),
        )
        return y.permute(2, 0, 1, 3).flatten(1, 2)


class GlobalUniForward(Swapped):
    _accelerated_as = "global_uniblock"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.dim() != 3 or y.dim() != 3 or len(x) != 1 or not untouched(self, dropout=True):
            return super().forward(x, y)
        drop = self.mlp._modules.get("dropout")
        query = global_uniblock(
            x.transpose(0, 1),
            y.transpose(0, 1),
            ln_3=LayerNorm.of(self.ln_3),
            **_layers(self),
            dropout=drop.p if drop is not None and drop.training else 0.0,
            drop_path=s.drop_path_rate(self),
        )
        return query.transpose(0, 1)


def _layers(block: nn.Module) -> dict[str, Any]:
    """What both blocks have, as the block functions name it."""
    return {
        "ln_1": LayerNorm.of(block.ln_1),
        "in_proj": Affine(block.attn.in_proj_weight, block.attn.in_proj_bias),
        "out_proj": Affine.of(block.attn.out_proj),
        "ln_2": LayerNorm.of(block.ln_2),
        "c_fc": Affine.of(block.mlp.c_fc),
        "c_proj": Affine.of(block.mlp.c_proj),
        "num_heads": block.attn.num_heads,
    }


def _aggregator(block: nn.Module, name: str) -> TemporalMHRA | None:
    lmhra = block._modules.get(name)
    if lmhra is None:
        return None
    norm, pw1, dw, pw2 = lmhra.pos_embed
    return TemporalMHRA(BatchNorm.of(norm), Affine.of(pw1), Affine.of(dw), Affine.of(pw2))


def _is_local(m: nn.Module) -> bool:
    return _is_block(m) and not hasattr(m, "ln_3")


def _is_global(m: nn.Module) -> bool:
    return _is_block(m) and s.has(m, "ln_3")


def _is_block(m: nn.Module) -> bool:
    attn = s.part(m, "attn")
    return isinstance(attn, nn.MultiheadAttention) and s.has(
        m, "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2"
    )


def _local_declines(m: nn.Module) -> str | None:
    parameters = list(inspect.signature(original_class(m).forward).parameters.values())[1:]
    for parameter, (name, default) in zip(parameters, _SIGNATURE.items(), strict=False):
        if (parameter.name, parameter.default) != (name, default):
            return f"forward: expected the argument {name}, got {parameter}"
    if len(parameters) < 2:
        return "forward: expected the argument T"
    for name in ("lmhra1", "lmhra2"):
        if s.has(m, name) and (reason := _aggregator_declines(m.attn.embed_dim, m._modules[name])):
            return f"{name}: {reason}"
    if any(isinstance(d, nn.Dropout) and d.p for d in m.mlp.children()):
        return "mlp: expected no dropout"
    return _declines(m)


def _global_declines(m: nn.Module) -> str | None:
    return s.mismatch(m, {"ln_3": s.layer_norm(m.attn.embed_dim)}) or _declines(m)


def _declines(m: nn.Module) -> str | None:
    attn, C = m.attn, m.attn.embed_dim
    if original_class(attn).forward is not nn.MultiheadAttention.forward:
        return f"attn: {s.name_of(attn)} has a forward of its own"
    plain = attn.in_proj_weight is not None and attn.in_proj_bias is not None
    if not plain or attn.bias_k is not None or attn.add_zero_attn or attn.batch_first:
        return "attn: expected biases, tokens first, and nothing beside keys and values"
    if attn.dropout or getattr(m, "attn_mask", None) is not None:
        return "attn: expected no dropout and no mask"
    hidden = getattr(m.mlp.c_proj, "in_features", 0)
    layers = {
        "ln_1": s.layer_norm(C),
        "ln_2": s.layer_norm(C),
        "mlp.c_fc": s.linear(C, hidden),
        "mlp.c_proj": s.linear(hidden, C),
    }
    return s.mismatch(m, layers) or s.drop_path(m)


def _aggregator_declines(channels: int, lmhra: nn.Module) -> str | None:
    layers = s.part(lmhra, "pos_embed")
    if not isinstance(layers, nn.Sequential) or len(layers) != 4:
        return "pos_embed: expected a norm and three convolutions"
    reduced = s.channels_of(layers[3])
    checks = {
        "0": s.batch_norm(channels),
        "1": s.pointwise(channels, reduced),
        "2": s.depthwise(reduced),
        "3": s.pointwise(reduced, channels),
    }
    return s.mismatch(layers, checks) or s.mismatch(layers, {"2": _temporal})


def _temporal(conv: nn.Module) -> str | None:
    if conv.kernel_size[-2:] != (1, 1):
        return f"kernel: expected it to reach along time only, got {conv.kernel_size}"
    return None


def _frames(m: nn.Module, random: Random) -> Inputs:
    """Two clips of three frames with four patches."""
    yield random.normal(5, 6, m.attn.embed_dim), 3


def _query(m: nn.Module, random: Random) -> Inputs:
    yield random.normal(1, 2, m.attn.embed_dim), random.normal(7, 2, m.attn.embed_dim)


FAMILIES = [
    Family("blocks", _is_local, _local_declines, LocalUniForward, _frames),
    Family("blocks", _is_global, _global_declines, GlobalUniForward, _query),
]
