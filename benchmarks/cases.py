"""The calls that are measured: operators and UniFormer-S, each with its rivals.

Every builder checks that all rivals compute the same before it returns them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import uniformer
from torch import Tensor, nn

import uniformer_kernels as uk

from . import baselines

Rivals = dict[str, Callable[[], object]]

OURS, CHANNELS_LAST, CHANNELS_FIRST = "ours", "channels-last", "channels-first"

DEPTHWISE = {  # of UniFormer-S at 16 x 224: kernel, shape, dtype
    "k5 8×56×56×64": (5, (1, 8, 56, 56, 64), torch.float32),
    "k3 8×56×56×64": (3, (1, 8, 56, 56, 64), torch.float32),
    "k5 8×28×28×128": (5, (1, 8, 28, 28, 128), torch.float32),
    "k3 8×14×14×320": (3, (1, 8, 14, 14, 320), torch.float32),
    "k5 8×56×56×64 bf16": (5, (1, 8, 56, 56, 64), torch.bfloat16),
}
ATTENTION = {"stage 3": (1, 1568, 320, 5), "stage 4": (1, 392, 512, 8)}
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
        CHANNELS_LAST: call(baselines.depthwise_conv3d, *last),
        CHANNELS_FIRST: call(baselines.depthwise_conv3d, *first),
    }
    ours = [t.movedim(-1, 1) if t.shape == shape else t for t in rivals[OURS]()]
    for name in (CHANNELS_LAST, CHANNELS_FIRST):
        for a, b in zip(ours, rivals[name](), strict=True):
            equal(a, b, 1e-4 if dtype == torch.float32 else 3e-2)
    return rivals


def attention(case: str, *, backward: bool) -> Rivals:
    B, N, C, heads = ATTENTION[case]
    torch.manual_seed(0)
    qkv = torch.randn(B, N, 3 * C).requires_grad_(backward)
    dy = torch.randn(B, N, C)

    def call(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def run() -> tuple[Tensor, ...]:
            y = function(qkv)
            return (y, *torch.autograd.grad(y, qkv, dy)) if backward else (y,)

        return run

    plain = baselines.packed_attention
    rivals = {
        OURS: call(lambda qkv: uk.joint_attention(qkv, heads)),
        "SDPA": call(lambda qkv: plain(qkv, heads, F.scaled_dot_product_attention)),
        "materialised": call(lambda qkv: plain(qkv, heads, baselines.materialised_attention)),
    }
    agree(rivals, 1e-4)
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

    def plain(*tensors: Tensor) -> Tensor:
        y = F.linear(*tensors)
        return F.gelu(y) if activation else y

    rivals = {
        OURS: call(lambda *tensors: uk.linear(*tensors, activation=activation)),
        "PyTorch": call(plain),
    }
    agree(rivals, 1e-4)
    return rivals


# UniFormer-S, 16 frames of 224 x 224


def models(clips: int) -> tuple[dict[str, nn.Module], Tensor]:
    """Ours and the eager rivals with the same weights, and clips."""
    torch.manual_seed(0)
    ours = uniformer.create_model("uniformer_video_small")
    state = ours.state_dict()
    rivals = {
        OURS: ours,
        "official eager": baselines.official(state),
        "SDPA + channels-last": baselines.best(state),
    }
    return rivals, torch.randn(clips, 3, 16, 224, 224)


def layout(name: str, clip: Tensor) -> Tensor:
    """The clip as the rival likes it best."""
    return clip.to(memory_format=torch.channels_last_3d) if "channels-last" in name else clip


def forward() -> Rivals:
    """Inference, also of the best rival compiled."""
    modules, clip = models(1)
    runs: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, module in modules.items():
        runs[name] = torch.inference_mode()(module.eval())
    best = modules["SDPA + channels-last"]
    runs["compiled, channels-last"] = baselines.compiled(best)
    runs["compiled max-autotune, channels-last"] = baselines.compiled(best, max_autotune=True)

    def call(name: str) -> Callable[[], object]:
        run, x = runs[name], layout(name, clip)
        return lambda: (run(x),)

    rivals = {name: call(name) for name in runs}
    agree(rivals, 1e-3)
    return rivals


def training_step() -> Rivals:
    """Forward, cross entropy, backward, AdamW.

    Of two clips: with one, the last BatchNorm and the mean over positions cancel, and every
    gradient but the head's bias is rounding.
    """
    modules, clip = models(2)
    del modules["official eager"]
    label = torch.tensor([7, 42])
    steps, losses, gradients = {}, {}, {}
    for name, module in modules.items():
        step = _step(module.train(), layout(name, clip), label)
        losses[name] = step()
        parameters = sorted(module.named_parameters())
        gradients[name] = torch.cat([p.grad.flatten() for _, p in parameters])
        steps[name] = step
    want = gradients.pop(OURS)
    for name, gradient in gradients.items():
        equal(losses[name], losses[OURS], 1e-3)
        error = ((gradient - want).norm() / want.norm()).item()
        if error > 1e-2:
            raise ValueError(f"gradients of {name} and ours differ by {error:.2g}")
    return steps


def _step(model: nn.Module, clip: Tensor, label: Tensor) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(clip), label)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


# Equality


def equal(a: Tensor, b: Tensor, tolerance: float) -> None:
    """Raise unless the largest difference is below `tolerance` of the largest value."""
    error = ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()
    if not error <= tolerance:
        raise ValueError(f"rivals differ by {error:.2g} where {tolerance:.2g} is allowed")


def agree(rivals: Rivals, tolerance: float) -> None:
    """Raise unless all rivals return the same tensors."""
    want = rivals[OURS]()
    for call in rivals.values():
        for a, b in zip(call(), want, strict=True):
            equal(a, b, tolerance)
