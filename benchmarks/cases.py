"""The operators' calls that are measured, each with its rivals.

Every builder checks that all rivals compute the same before it returns them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import uniformer_kernels as uk

from .baselines import operators as plain

Rivals = dict[str, Callable[[], object]]

OURS, OFFICIAL = "ours", "official eager"
CHANNELS_LAST, CHANNELS_FIRST = "channels-last", "channels-first"

DEPTHWISE = {  # of UniFormer-S at 16 x 224: kernel, shape, dtype
    "k5 8×56×56×64": (5, (1, 8, 56, 56, 64), torch.float32),
    "k3 8×56×56×64": (3, (1, 8, 56, 56, 64), torch.float32),
    "k5 8×28×28×128": (5, (1, 8, 28, 28, 128), torch.float32),
    "k3 8×14×14×320": (3, (1, 8, 14, 14, 320), torch.float32),
    "k5 8×56×56×64 bf16": (5, (1, 8, 56, 56, 64), torch.bfloat16),
}
ATTENTION = {  # B, N, C, heads, dtype
    "stage 3": (1, 1568, 320, 5, torch.float32),
    "stage 4": (1, 392, 512, 8, torch.float32),
    "stage 3 bf16": (1, 1568, 320, 5, torch.bfloat16),
}
LINEAR = {  # rows, C_in, C_out
    "stage 1 fc1": (25088, 64, 256),
    "stage 2 fc2": (6272, 512, 128),
    "stage 3 qkv": (1568, 320, 960),
    "stage 3 fc1": (1568, 320, 1280),
    "stage 4 fc2": (392, 2048, 512),
}


def depthwise(case: str, *, backward: bool) -> Rivals:
    """`conv(x)`, and with `backward` the gradients of input, weight and bias."""
    k, shape, dtype = DEPTHWISE[case]
    torch.manual_seed(0)
    C = shape[-1]
    x, dy = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    weight, bias = torch.randn(C, 1, k, k, k).to(dtype), torch.randn(C).to(dtype)
    last = [t.movedim(-1, 1) for t in (x, dy)]
    first = [t.contiguous() for t in last]

    def call(function: Callable[..., Tensor], x: Tensor, dy: Tensor) -> Callable[[], object]:
        leaves = [t.detach().requires_grad_(backward) for t in (x, weight, bias)]

        def run() -> tuple[Tensor, ...]:
            y = function(*leaves)
            return (y, *torch.autograd.grad(y, leaves, dy)) if backward else (y,)

        return run

    rivals = {
        OURS: call(uk.depthwise_conv3d, x, dy),
        CHANNELS_LAST: call(plain.depthwise_conv3d, *last),
        CHANNELS_FIRST: call(plain.depthwise_conv3d, *first),
    }
    ours = [t.movedim(-1, 1) if t.shape == shape else t for t in rivals[OURS]()]
    for name in (CHANNELS_LAST, CHANNELS_FIRST):
        for a, b in zip(ours, rivals[name](), strict=True):
            equal(a, b, 1e-4 if dtype == torch.float32 else 3e-2)
    return rivals


def attention(case: str, *, backward: bool) -> Rivals:
    B, N, C, heads, dtype = ATTENTION[case]
    torch.manual_seed(0)
    qkv = torch.randn(B, N, 3 * C, dtype=dtype).requires_grad_(backward)
    dy = torch.randn(B, N, C, dtype=dtype)

    def call(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def run() -> tuple[Tensor, ...]:
            y = function(qkv)
            return (y, *torch.autograd.grad(y, qkv, dy)) if backward else (y,)

        return run

    packed = plain.packed_attention
    rivals = {
        OURS: call(lambda qkv: uk.joint_attention(qkv, heads)),
        "SDPA": call(lambda qkv: packed(qkv, heads, F.scaled_dot_product_attention)),
        "materialised": call(lambda qkv: packed(qkv, heads, plain.materialised_attention)),
    }
    agree(rivals, 1e-4 if dtype == torch.float32 else 3e-2)
    return rivals


def linear(case: str, *, backward: bool) -> Rivals:
    rows, C_in, C_out = LINEAR[case]
    activation = "gelu" if "fc1" in case else None
    torch.manual_seed(0)
    x, weight = torch.randn(rows, C_in), torch.randn(C_out, C_in) / C_in**0.5
    leaves = [t.requires_grad_(backward) for t in (x, weight, torch.randn(C_out))]
    dy = torch.randn(rows, C_out)

    def call(function: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> tuple[Tensor, ...]:
            y = function(*leaves)
            return (y, *torch.autograd.grad(y, leaves, dy)) if backward else (y,)

        return run

    def unfused(*tensors: Tensor) -> Tensor:
        y = F.linear(*tensors)
        return F.gelu(y) if activation else y

    rivals = {
        OURS: call(lambda *tensors: uk.linear(*tensors, activation=activation)),
        "PyTorch": call(unfused),
    }
    agree(rivals, 1e-4)
    return rivals


def tokens() -> Rivals:
    """Shrinking and recovering a sequence as UniFormer-XXS's third stage does at 16 x 160."""
    torch.manual_seed(0)
    N, C, keep = 800, 224, 400
    x, score_token, delta = (torch.randn(1, n, C) for n in (N, 1, 1))
    importance = torch.rand(1, N)

    def ours() -> tuple[Tensor, Tensor]:
        z, index = uk.token_shrink(x, importance, keep, prefix=score_token)
        return uk.token_recover(x, index, z[:, 1:-1], delta), z[:, -1]

    def official() -> tuple[Tensor, Tensor]:
        z, others, *order = plain.token_shrink(x, importance, keep, score_token)
        recovered, _ = plain.token_recover(z[:, 1:-1], others + delta, *order)
        return recovered, z[:, -1]

    rivals = {OURS: torch.inference_mode()(ours), OFFICIAL: torch.inference_mode()(official)}
    agree(rivals, 1e-4)
    return rivals


# Equality


def equal(a: Tensor, b: Tensor, tolerance: float) -> None:
    """Raise unless the largest difference is below `tolerance` of the largest value."""
    error = ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()
    if not error <= tolerance:
        raise ValueError(f"rivals differ by {error:.2g} where {tolerance:.2g} is allowed")


def agree(rivals: Rivals, tolerance: float, want: Sequence[Tensor] | None = None) -> None:
    """Raise unless all rivals return the same tensors: what ours returns, or `want`."""
    want = rivals[OURS]() if want is None else want
    for call in rivals.values():
        for a, b in zip(call(), want, strict=True):
            equal(a, b, tolerance)
