"""The blocks of UniFormer on maps ``[B, C, H, W]`` and ``[B, C, T, H, W]``.

The official image and video models and the backbones of mmaction2, mmdet and mmseg hold them under
the same names: ``pos_embed``, ``norm1``, ``attn``, ``norm2``, ``mlp``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..blocks import (
    Affine,
    BatchNorm,
    LayerNorm,
    divided_block,
    global_block,
    local_block,
    window_block,
)
from . import structure as s
from .family import Family
from .probe import Inputs, Random
from .swap import Swapped, untouched


class _Block(Swapped):
    """A block of one map."""

    def forward(self, x: Tensor) -> Tensor:
        if not s.is_map(x, self.pos_embed) or not untouched(self):
            return super().forward(x)
        y = _BLOCKS[self._accelerated_as](self, s.channels_last(x), s.drop_path_rate(self))
        return s.channels_first(y, x.dim())


def _local(block: nn.Module, x: Tensor, drop_path: float) -> Tensor:
    return local_block(
        x,
        dpe=Affine.of(block.pos_embed),
        norm1=BatchNorm.of(block.norm1),
        pw1=Affine.of(block.conv1),
        dw=Affine.of(block.attn),
        pw2=Affine.of(block.conv2),
        norm2=BatchNorm.of(block.norm2),
        fc1=Affine.of(block.mlp.fc1),
        fc2=Affine.of(block.mlp.fc2),
        **_scales(block),
        drop_path=drop_path,
    )


def _global(block: nn.Module, x: Tensor, drop_path: float) -> Tensor:
    return global_block(x, **transformer_layers(block), **_scales(block), drop_path=drop_path)


def _window(block: nn.Module, x: Tensor, drop_path: float) -> Tensor:
    size = block.window_size
    return window_block(x, **transformer_layers(block), window_size=size, drop_path=drop_path)


def _divided(block: nn.Module, x: Tensor, drop_path: float) -> Tensor:
    return divided_block(
        x,
        t_norm=LayerNorm.of(block.t_norm),
        t_qkv=Affine.of(block.t_attn.qkv),
        t_proj=Affine.of(block.t_attn.proj),
        **transformer_layers(block),
        drop_path=drop_path,
    )


def transformer_layers(block: nn.Module) -> dict[str, Any]:
    """What every block with attention has, as the block functions name it."""
    return {
        "dpe": Affine.of(block.pos_embed),
        "norm1": LayerNorm.of(block.norm1),
        "qkv": Affine.of(block.attn.qkv),
        "proj": Affine.of(block.attn.proj),
        "norm2": LayerNorm.of(block.norm2),
        "fc1": Affine.of(block.mlp.fc1),
        "fc2": Affine.of(block.mlp.fc2),
        "num_heads": block.attn.num_heads,
    }


def _scales(block: nn.Module) -> dict[str, Tensor | None]:
    return {name: getattr(block, name, None) for name in ("gamma_1", "gamma_2")}


def _is_local(m: nn.Module) -> bool:
    return s.has(m, "pos_embed", "norm1", "conv1", "attn", "conv2", "norm2", "mlp.fc1", "mlp.fc2")


def _local_declines(m: nn.Module) -> str | None:
    C, hidden = s.channels_of(m.pos_embed), s.channels_of(m.mlp.fc2)
    return (
        s.mismatch(
            m,
            {
                "pos_embed": s.depthwise(C),
                "norm1": s.batch_norm(C),
                "conv1": s.pointwise(C, C),
                "attn": s.depthwise(C),
                "conv2": s.pointwise(C, C),
                "norm2": s.batch_norm(C),
                "mlp.fc1": s.pointwise(C, hidden),
                "mlp.fc2": s.pointwise(hidden, C),
                "mlp": s.act,
            },
        )
        or s.drop_path(m)
        or s.gammas(m, C)
    )


def is_transformer(m: nn.Module) -> bool:
    """Whether a module has the parts of a block with attention."""
    return s.has(
        m, "pos_embed", "norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"
    ) and isinstance(m.pos_embed, (nn.Conv2d, nn.Conv3d))


def transformer_declines(m: nn.Module) -> str | None:
    """What does not fit in a block with attention."""
    C, hidden = s.channels_of(m.pos_embed), getattr(m.mlp.fc2, "in_features", 0)
    return (
        s.mismatch(
            m,
            {
                "pos_embed": s.depthwise(C),
                "norm1": s.layer_norm(C),
                "attn.qkv": s.linear(C, 3 * C),
                "attn.proj": s.linear(C, C),
                "attn": lambda attn: s.head_scale(attn, C),
                "norm2": s.layer_norm(C),
                "mlp.fc1": s.linear(C, hidden),
                "mlp.fc2": s.linear(hidden, C),
                "mlp": s.act,
            },
        )
        or s.drop_path(m)
        or s.gammas(m, C)
    )


def _window_declines(m: nn.Module) -> str | None:
    if not isinstance(m.window_size, int):
        return f"window_size: expected a number, got {m.window_size!r}"
    if any(getattr(m, name, None) is not None for name in ("gamma_1", "gamma_2")):
        return "gamma_1, gamma_2: window blocks have no layer scale"
    return transformer_declines(m)


def _divided_declines(m: nn.Module) -> str | None:
    C = s.channels_of(m.pos_embed)
    temporal = {
        "t_norm": s.layer_norm(C),
        "t_attn.qkv": s.linear(C, 3 * C),
        "t_attn.proj": s.linear(C, C),
        "t_attn": lambda attn: s.head_scale(attn, C),
    }
    if m.pos_embed.weight.dim() != 5:
        return "pos_embed: expected a Conv3d"
    if m.t_attn.num_heads != getattr(m.attn, "num_heads", None):
        return "t_attn.num_heads: expected as many as in attn"
    if any(getattr(m, name, None) is not None for name in ("gamma_1", "gamma_2")):
        return "gamma_1, gamma_2: divided blocks have no layer scale"
    return s.mismatch(m, temporal) or transformer_declines(m)


def _is_windowed(m: nn.Module) -> bool:
    return is_transformer(m) and getattr(m, "window_size", None) is not None


def _is_divided(m: nn.Module) -> bool:
    return is_transformer(m) and s.has(m, "t_norm", "t_attn.qkv", "t_attn.proj")


def _maps(m: nn.Module, random: Random) -> Inputs:
    """Of odd and even sizes; more than a window, less than two."""
    window = getattr(m, "window_size", 2)
    sizes = 2, s.channels_of(m.pos_embed), 2, window + 1, 3
    yield (random.normal(*s.shapes(sizes, like=m.pos_embed)),)


_BLOCKS = {
    "local_block": _local,
    "global_block": _global,
    "window_block": _window,
    "divided_block": _divided,
}


class LocalForward(_Block):
    _accelerated_as = "local_block"


class GlobalForward(_Block):
    _accelerated_as = "global_block"


class WindowForward(_Block):
    _accelerated_as = "window_block"


class DividedForward(_Block):
    _accelerated_as = "divided_block"


FAMILIES = [
    Family("blocks", looks_alike, declines, forward, _maps)
    for forward, looks_alike, declines in (  # the more particular first
        (LocalForward, _is_local, _local_declines),
        (WindowForward, _is_windowed, _window_declines),
        (DividedForward, _is_divided, _divided_declines),
        (GlobalForward, is_transformer, transformer_declines),
    )
]
