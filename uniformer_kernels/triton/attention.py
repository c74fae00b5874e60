"""Joint attention, and what it shares with attention inside windows: starting the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention_kernels import (
    forward_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
    score_kernel,
)
from .launch import cdiv, launch, power_of_2, precision
from .tuning import Tunable

_SPACE = [
    {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}
    for m, n, warps, stages in (
        (32, 32, 4, 2),
        (64, 32, 4, 2),
        (64, 32, 4, 3),
        (64, 64, 4, 2),
        (64, 64, 4, 3),
        (128, 32, 4, 3),
        (128, 32, 8, 3),
        (128, 64, 4, 3),
        (128, 64, 8, 2),
        (128, 64, 8, 3),
        (128, 128, 8, 2),
    )
]


class Tunables(NamedTuple):
    """An operator's kernels; queries come in blocks of M, keys in blocks of N."""

    forward: Tunable
    query_gradient: Tunable
    key_gradient: Tunable

    @classmethod
    def of(cls, operator: str) -> Tunables:
        suffixes = "", "_query_gradient", "_key_gradient"
        return cls(*(Tunable(operator + suffix, _SPACE) for suffix in suffixes))


JOINT = Tunables.of("joint_attention")


@dataclass(frozen=True)
class Windows:
    """How a sample's tokens fall into windows: all into one, or into squares of a grid."""

    count: int
    tokens: int  # of the fullest
    columns: int | None = None
    size: int | None = None


def attend(
    tunables: Tunables,
    windows: Windows,
    qkv: Tensor,
    bias: Tensor | None,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention [B, N, C] and ``lse`` [B, num_heads, N]; with ``bias`` where windows are padded."""
    B, N, packed = qkv.shape
    out = qkv.new_empty(B, N, packed // 3)
    lse = qkv.new_empty(B, num_heads, N, dtype=torch.float32)
    options = _options(tunables.forward, windows, qkv, num_heads)
    options.pop("sdpa", None)  # decided before this was called
    blocks = cdiv(windows.tokens, options["BLOCK_M"])
    launch(
        forward_kernel,
        (B * windows.count * num_heads * blocks,),
        qkv,
        bias,
        out,
        lse,
        scale,
        *_sizes(windows, qkv, num_heads, blocks),
        **_constants(qkv, num_heads),
        **options,
    )
    return out, lse


def attend_backward(
    tunables: Tunables,
    windows: Windows,
    dout: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    scale: float,
    dscore: Tensor | None = None,
    scored: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Gradient of ``qkv``, and partial sums [groups, 2C] of the bias's keys and values."""
    B, _, packed = qkv.shape
    programs = B * windows.count * num_heads
    dqkv, delta = qkv.new_empty(qkv.shape), torch.empty_like(lse)
    options = _options(tunables.query_gradient, windows, qkv, num_heads)
    blocks = cdiv(windows.tokens, options["BLOCK_M"])
    partials = None
    if bias is not None:
        groups = B * windows.count * blocks
        partials = lse.new_empty(groups, packed // 3 * 2)
    launch(
        query_gradient_kernel,
        (programs * blocks,),
        dout,
        dscore,
        qkv,
        bias,
        out,
        lse,
        delta,
        dqkv,
        partials,
        scale,
        scored,
        *_sizes(windows, qkv, num_heads, blocks),
        **_constants(qkv, num_heads),
        **options,
    )
    options = _options(tunables.key_gradient, windows, qkv, num_heads)
    blocks = cdiv(windows.tokens, options["BLOCK_N"])
    launch(
        key_gradient_kernel,
        (programs * blocks,),
        dout,
        dscore,
        qkv,
        lse,
        delta,
        dqkv,
        scale,
        scored,
        *_sizes(windows, qkv, num_heads, blocks),
        **_constants(qkv, num_heads),
        **options,
    )
    return dqkv, partials


def _sizes(windows: Windows, qkv: Tensor, num_heads: int, blocks: int) -> tuple[int | None, ...]:
    sample, token, _ = qkv.stride()
    return qkv.shape[1], windows.columns, windows.size, num_heads, blocks, sample, token


def _constants(qkv: Tensor, num_heads: int) -> dict[str, Any]:
    d = _head_dim(qkv, num_heads)
    return {"D": d, "BLOCK_D": max(power_of_2(d), 16), "PRECISION": precision()}


def _options(tunable: Tunable, windows: Windows, qkv: Tensor, num_heads: int) -> dict[str, Any]:
    large = _head_dim(qkv, num_heads) > 64
    if qkv.element_size() == 4:  # no tensor cores: products are made in registers
        m, n, warps = (16, 16, 4) if large else (32, 32, 8)
    elif tunable.name.endswith("_key_gradient"):
        m, n, warps = 32, 64, 8 if large else 4
    elif tunable.name.endswith("_query_gradient") or large:
        m, n, warps = 64, 32, 8 if large else 4
    else:
        m, n, warps = 64, 64, 4
    default = {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": 2}
    return tunable.options(qkv.device, shape_class(qkv, num_heads, windows.tokens), **default)


def _head_dim(qkv: Tensor, num_heads: int) -> int:
    return qkv.shape[2] // 3 // num_heads


def shape_class(qkv: Tensor, num_heads: int, tokens: int) -> str:
    bucket = 1
    while bucket < tokens:
        bucket *= 2
    return f"d{_head_dim(qkv, num_heads)} N{bucket} {8 * qkv.element_size()}-bit"


@torch.compiler.assume_constant_result
def hands_over(device: torch.device, shape_class: str) -> bool:
    """Whether PyTorch's attention is measured to be faster than joint attention here."""
    return JOINT.forward.options(device, shape_class, sdpa=False)["sdpa"]


def joint_attention(qkv: Tensor, num_heads: int, scale: float) -> tuple[Tensor, Tensor]:
    return attend(JOINT, Windows(1, qkv.shape[1]), qkv, None, num_heads, scale)


def joint_attention_backward(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, scale: float
) -> Tensor:
    windows = Windows(1, qkv.shape[1])
    return attend_backward(JOINT, windows, dout, qkv, None, out, lse, num_heads, scale)[0]


def joint_attention_with_score(
    qkv: Tensor, num_heads: int, queries: int | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    out, lse = joint_attention(qkv, num_heads, scale)
    B, N, _ = qkv.shape
    score = qkv.new_empty(B, N, dtype=torch.float32)
    scored = N if queries is None else queries
    block_n = 32 if qkv.element_size() == 4 else 64
    blocks = cdiv(N, block_n)
    launch(
        score_kernel,
        (B * blocks,),
        qkv,
        lse,
        score,
        scale,
        scored,
        N,
        num_heads,
        blocks,
        *qkv.stride()[:2],
        **_constants(qkv, num_heads),
        BLOCK_M=min(max(power_of_2(scored), 16), 64),
        BLOCK_N=block_n,
        num_warps=4,
    )
    return out, score, lse


def joint_attention_with_score_backward(
    dout: Tensor,
    dscore: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    queries: int | None,
    scale: float,
) -> Tensor:
    N = qkv.shape[1]
    scored = N if queries is None else queries
    return attend_backward(
        JOINT, Windows(1, N), dout, qkv, None, out, lse, num_heads, scale, dscore, scored
    )[0]
