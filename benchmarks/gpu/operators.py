"""Operators at the models' shapes against what PyTorch offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import uniformer_kernels as uk
from uniformer_kernels import cuda
from uniformer_kernels.bench import plain
from uniformer_kernels.bench.graphs import Make, compare

from .rows import OURS, row

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DEPTHWISE = [  # kernel, T, H, W, C
    (5, 8, 56, 56, 64),
    (3, 8, 56, 56, 64),
    (5, 8, 28, 28, 128),
    (3, 8, 28, 28, 128),
    (3, 8, 14, 14, 320),
    (3, 8, 7, 7, 512),
    (5, 8, 40, 40, 56),
    (3, 8, 10, 10, 224),
]
ATTENTION = [  # tokens, heads, head_dim
    (1568, 5, 64),
    (392, 8, 64),
    (3136, 5, 64),
    (801, 8, 28),
    (402, 8, 28),
    (801, 8, 32),
]
_PASSES = {False: "forward", True: "forward + gradients"}
FEED_FORWARD = [(8 * 56 * 56, 64), (8 * 28 * 28, 128), (8 * 14 * 14, 320)]  # rows of a clip, C


def differentiated(
    function: Callable[..., Tensor], inputs: Callable[[], list[Tensor]], backward: bool
) -> Make:
    """`function` on inputs of its own; with `backward` also all gradients."""

    def make() -> Callable[[], object]:
        leaves = [t.requires_grad_(backward) for t in inputs()]
        with torch.no_grad():
            dy = torch.randn_like(function(*leaves))

        def call() -> object:
            y = function(*leaves)
            return torch.autograd.grad(y, leaves, dy) if backward else y

        return call

    return make


def in_cuda(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """By the CUDA C++ kernels, which yield to Triton's unless asked for."""

    def run(*tensors: Tensor) -> Tensor:
        with uk.use_backend("cuda"):
            return function(*tensors)

    return run


def depthwise(k: int, shape: tuple[int, ...], dtype: str, *, backward: bool) -> dict[str, Make]:
    C = shape[-1]
    new = partial(torch.randn, device="cuda", dtype=DTYPES[dtype])

    def inputs(layout: str) -> list[Tensor]:
        x = new(shape)
        if layout != OURS:
            x = x.movedim(-1, 1)
        if layout == "native, channels-first":
            x = x.contiguous()
        return [x, new(C, 1, k, k, k), new(C)]

    def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The baseline of giving up on depthwise: a full kernel, zero off the diagonal."""
        full = torch.diag_embed(weight[:, 0].movedim(0, -1)).movedim((-2, -1), (0, 1))
        return F.conv3d(x, full, bias, padding=k // 2)

    rivals = {
        OURS: (uk.depthwise_conv3d, OURS),
        "CUDA C++": (in_cuda(uk.depthwise_conv3d), OURS),
        "cuDNN, channels-last": (plain.depthwise_conv3d, "cuDNN, channels-last"),
        "native, channels-first": (plain.depthwise_conv3d, "native, channels-first"),
    }
    if C == 64 and not backward:
        rivals["dense, channels-last"] = (dense, "dense, channels-last")
    makes = {
        name: differentiated(function, partial(inputs, layout), backward)
        for name, (function, layout) in rivals.items()
    }
    makes["CUDA C++, TMA"] = twin(cuda.TMA, partial(inputs, OURS), backward)
    if k == 5 and dtype == "bf16":
        makes["CUDA C++, tensor cores"] = twin(cuda.TOEPLITZ, partial(inputs, OURS), backward)
    return makes


def twin(name: str, inputs: Callable[[], list[Tensor]], backward: bool) -> Make:
    """By the kernels themselves, whatever the tuning table says of them."""
    forward, gradients = (
        getattr(torch.ops.uniformer_kernels, name + suffix) for suffix in ("", "_backward")
    )

    def make() -> Callable[[], object]:
        x, weight, bias = inputs()
        dy = torch.randn_like(x)

        def call() -> object:
            y = forward(x, weight, bias, False)
            return (y, gradients(dy, x, weight, False, True, True)) if backward else y

        return call

    return make


def attention(
    batch: int, N: int, heads: int, d: int, dtype: str, *, backward: bool
) -> dict[str, Make]:
    def inputs() -> list[Tensor]:
        return [torch.randn(batch, N, 3 * heads * d, device="cuda", dtype=DTYPES[dtype])]

    def sdpa(backend: SDPBackend, qkv: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return plain.packed_attention(qkv, heads, F.scaled_dot_product_attention)

    functions: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: lambda qkv: uk.joint_attention(qkv, heads),
        "SDPA flash": partial(sdpa, SDPBackend.FLASH_ATTENTION),
        "SDPA cuDNN": partial(sdpa, SDPBackend.CUDNN_ATTENTION),
        "SDPA efficient": partial(sdpa, SDPBackend.EFFICIENT_ATTENTION),
    }
    return {name: differentiated(f, inputs, backward) for name, f in functions.items()}


def feed_forward(rows: int, C: int, dtype: str, *, backward: bool) -> dict[str, Make]:
    new = partial(torch.randn, device="cuda", dtype=DTYPES[dtype])

    def inputs() -> list[Tensor]:
        return [new(rows, C), new(4 * C, C) / C**0.5, new(4 * C), new(C, 4 * C), new(C)]

    def pair(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return x + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)

    functions = {OURS: lambda x, *ps: uk.feed_forward(x, *ps, residual=x), "cuBLASLt": pair}
    return {name: differentiated(f, inputs, backward) for name, f in functions.items()}


def tokens(batch: int, N: int, C: int) -> dict[str, Make]:
    def make(chain: Callable[..., Tensor]) -> Callable[[], object]:
        x = torch.randn(batch, N, C, device="cuda", dtype=torch.bfloat16)
        importance = torch.rand(batch, N, device="cuda")
        return partial(chain, x, importance)

    def ours(x: Tensor, importance: Tensor) -> Tensor:
        z, index = uk.token_shrink(x, importance, N // 2)
        return uk.token_recover(x, index, z[:, :-1], z[:, -1:])

    def official(x: Tensor, importance: Tensor) -> Tensor:
        order = importance.argsort(descending=True)
        x = x.gather(1, order.unsqueeze(-1).expand_as(x))
        weight = importance.gather(1, order)[:, N // 2 :, None]
        kept, dropped = x[:, : N // 2], x[:, N // 2 :]
        merged = ((dropped * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)).to(x.dtype)
        z = torch.cat([kept, merged], 1)
        x = torch.cat([z[:, :-1], dropped + z[:, -1:]], 1)
        return x.gather(1, order.argsort().unsqueeze(-1).expand_as(x))

    chains = {OURS: ours, "CUDA C++": in_cuda(ours), "official eager": official}
    return {name: partial(make, chain) for name, chain in chains.items()}


def selection(batch: int, N: int, C: int) -> dict[str, Make]:
    """The first half of it: which tokens stay, and the mean of the others."""

    def make(shrink: Callable[..., object]) -> Callable[[], object]:
        x = torch.randn(batch, N, C, device="cuda", dtype=torch.bfloat16)
        return partial(shrink, x, torch.rand(batch, N, device="cuda"), N // 2)

    kernels = {OURS: uk.token_shrink, "CUDA C++": in_cuda(uk.token_shrink)}
    return {name: partial(make, kernel) for name, kernel in kernels.items()}


def cases() -> Iterator[tuple[str, dict[str, Make], dict[str, Any]]]:
    """Every row's name, its rivals, and the work that its figures are held against."""
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        for k, *grid in DEPTHWISE:
            shape = (16, *grid)
            elements = torch.Size(shape).numel()
            for backward, pass_ in _PASSES.items():
                work = {
                    "against": ("cuDNN, channels-last", "native, channels-first"),
                    "bytes_": (2 + 3 * backward) * elements * size,
                    "flops": 2 * k**3 * elements * (3 if backward else 1),
                }
                what = f"depthwise k{k} {'×'.join(map(str, grid))} {dtype}, {pass_}"
                yield what, depthwise(k, shape, dtype, backward=backward), work
    for batch in (16, 1):
        for N, heads, d in ATTENTION:
            for backward, pass_ in _PASSES.items():
                flops = batch * heads * 4 * N * N * d * (3.5 if backward else 1)
                what = f"attention {N} × {heads} × {d}, batch {batch} bf16, {pass_}"
                makes = attention(batch, N, heads, d, "bf16", backward=backward)
                yield what, makes, {"flops": flops}
    for rows, C in FEED_FORWARD:
        for backward, pass_ in _PASSES.items():
            flops = 16 * rows * C * 4 * C * 4 * (3 if backward else 1)
            makes = feed_forward(16 * rows, C, "bf16", backward=backward)
            yield f"feed-forward C = {C} bf16, {pass_}", makes, {"flops": flops}
    yield "token_shrink + token_recover 800×224 bf16", tokens(16, 800, 224), {}
    yield "token_shrink 800×224 bf16, batch 16", selection(16, 800, 224), {}


def run() -> Iterator[dict[str, Any]]:
    for what, makes, work in cases():
        yield row(what, compare(makes), **work)
        torch.cuda.empty_cache()
