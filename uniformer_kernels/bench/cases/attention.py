"""Attention of the papers: joint, with the score token's row, in windows, of one query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ... import reference
from ...reference.window_attention import from_windows, windows
from .. import plain
from ..case import MATRIX, Case, Rival, compiled
from . import libraries

JOINT = {  # tokens, channels, heads
    "S stage 3, 1568 × 5 × 64": (1568, 320, 5),
    "S stage 4, 392 × 8 × 64": (392, 512, 8),
    "B stage 3, 3136 × 5 × 64": (3136, 320, 5),
    "XXS stage 3, 801 × 8 × 28": (801, 224, 8),
}
_SCORED = {
    "XXS stage 3, 801 × 8 × 28": (801, 224, 8),
    "XXS stage 3 shrunk, 402 × 8 × 28": (402, 224, 8),
}
_WINDOWS = {  # grid, heads, window
    "dense S stage 3, 50×80×320, windows of 14": ((1, 50, 80, 320), 5, 14),
    "dense S stage 3, 14×14×320, windows of 14": ((1, 14, 14, 320), 5, 14),
}
_QUERY = {"V2-B, 8 frames, 1576 × 12 × 64": (1576, 768, 12)}  # tokens, channels, heads

_GPU_SDPA = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def _on_gpu(dtype: torch.dtype, device: torch.device) -> bool:
    return device.type == "cuda"


def _sdpa_by(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def _packed(num_heads: int, attend: plain.Attend) -> Callable[..., Tensor]:
    def compute(qkv: Tensor) -> Tensor:
        return plain.packed_attention(qkv, num_heads, attend)

    return compute


def joint_rivals(num_heads: int) -> dict[str, Rival]:
    """SDPA as PyTorch chooses, by each of a GPU's backends, and with its scores written out."""
    rivals = {"SDPA": Rival(_packed(num_heads, F.scaled_dot_product_attention))}
    for name, backend in _GPU_SDPA.items():
        attend = partial(_sdpa_by, backend)
        rivals[name] = Rival(_packed(num_heads, attend), serves=_on_gpu)
    math = partial(_sdpa_by, SDPBackend.MATH)
    rivals["SDPA math"] = Rival(_packed(num_heads, math))
    rivals["materialised (official)"] = Rival(_packed(num_heads, plain.materialised_attention))
    return rivals


def _with_score(qkv: Tensor, *, num_heads: int) -> tuple[Tensor, Tensor]:
    """As the official hourglass block: the whole softmax is there, its first row is the score."""
    q, k, v = plain.unpacked(qkv, num_heads)
    weights = plain.attention_weights(q, k)
    return (weights @ v).transpose(1, 2).flatten(2), weights[:, :, 0].mean(1).float()


def _sdpa_and_score(qkv: Tensor, *, num_heads: int) -> tuple[Tensor, Tensor]:
    """SDPA, and the first row of the softmax once more."""
    q, k, v = plain.unpacked(qkv, num_heads)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return y, plain.attention_weights(q[:, :, :1].float(), k.float())[:, :, 0].mean(1)


def _window_sdpa(qkv: Tensor, bias: Tensor, *, num_heads: int, window_size: int) -> Tensor:
    packed = windows(qkv, bias, window_size)
    y = plain.packed_attention(packed, num_heads, F.scaled_dot_product_attention)
    return from_windows(y, qkv.shape[:4], window_size)


def _multi_head(
    query: Tensor,
    memory: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    *,
    num_heads: int,
) -> Tensor:
    """As the official block, by SDPA: keys and values of all tokens are projected."""
    y = F.layer_norm(memory, memory.shape[-1:], norm_weight, norm_bias)
    q_weight, kv_weight = in_proj_weight.tensor_split([query.shape[-1]])
    q_bias, kv_bias = in_proj_bias.tensor_split([query.shape[-1]])
    k, v = F.linear(y, kv_weight, kv_bias).chunk(2, -1)
    heads = [
        t.unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for t in (F.linear(query, q_weight, q_bias), k, v)
    ]
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def cases(batch: int) -> Iterator[Case]:
    options: dict[str, Any]
    for name, (N, C, heads) in JOINT.items():
        yield Case(
            "joint_attention",
            name,
            {"qkv": (batch, N, 3 * C)},
            reduction=N,
            options={"num_heads": heads},
            work={MATRIX: 4 * batch * N * N * C},
            gradients=2.5,
            rivals=joint_rivals(heads) | libraries.attention(C, heads),
        )
    for name, (N, C, heads) in _SCORED.items():
        options = {"num_heads": heads}
        yield Case(
            "joint_attention_with_score",
            name,
            {"qkv": (batch, N, 3 * C)},
            reduction=N,
            options=options,
            work={MATRIX: 4 * batch * N * N * C + 2 * batch * N * C},
            gradients=2.5,
            rivals={
                "SDPA and a row": Rival(partial(_sdpa_and_score, **options)),
                "materialised (official)": Rival(partial(_with_score, **options)),
            },
        )
    for name, (grid, heads, size) in _WINDOWS.items():
        T, H, W, C = grid
        options = {"num_heads": heads, "window_size": size}
        keys = -(-H // size) * -(-W // size) * size**4
        yield Case(
            "window_attention",
            name,
            {"qkv": (batch, *grid[:-1], 3 * C), "bias": (3 * C,)},
            reduction=H * W,
            options=options,
            work={MATRIX: 4 * batch * T * keys * C},
            gradients=2.5,
            rivals={
                "SDPA of copied windows": Rival(partial(_window_sdpa, **options)),
                "compiled": compiled(_window_sdpa, **options),
                **libraries.window_attention(C, heads, size),
            },
        )
    for name, (N, C, heads) in _QUERY.items():
        options = {"num_heads": heads}
        yield Case(
            "query_attention",
            name,
            {
                "query": (batch, 1, C),
                "memory": (batch, N, C),
                "norm_weight": (C,),
                "norm_bias": (C,),
                "in_proj_weight": (3 * C, C),
                "in_proj_bias": (3 * C,),
            },
            reduction=N * C,
            options=options,
            # Query, query into keys, pools into values; scores and pools of every head.
            work={MATRIX: 2 * batch * (3 * C * C + 2 * heads * N * C)},
            rivals={
                "SDPA of projected tokens (official)": Rival(partial(_multi_head, **options)),
                "compiled": compiled(reference.query_attention, **options),
                **libraries.query_attention(C, heads),
            },
        )
