"""``python -m uniformer_kernels.tune``: measure tile sizes on this GPU and rewrite the table.

The calls that are timed are those the models make: they are planned on meta tensors first. Every
choice in a kernel's space is held against the default's result before it may win.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError
from triton.testing import do_bench

from . import cuda, ops
from .kernels import kernels
from .triton import tuning
from .triton.library import NAMESPACE
from .triton.plan import planning

_GAIN = 0.97  # of the default's time: less of a gain is noise

Timer = Callable[[Callable[[], object]], float]

Call = tuple[str, tuple[Any, ...]]
"""An operator of the Triton library by name, and its arguments with tensors on the meta device."""


def calls_of(run: Callable[[], object]) -> list[Call]:
    """Our operators' calls in ``run``, which works on meta tensors; each kind once."""
    with planning() as plan:
        run()
    return list({_kind(call): call for call in plan.calls}.values())


def _kind(call: Call) -> tuple[Any, ...]:
    name, args = call

    def key(a: Any) -> Any:
        if isinstance(a, Tensor):
            return a.dtype, a.shape, a.stride()
        return tuple(a) if isinstance(a, list) else a

    return name, *map(key, args)


def _real(value: Any, device: torch.device) -> Any:
    """A tensor with numbers for a meta tensor; indices are the first ones, in order."""
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.int64:
        return torch.arange(value.shape[-1], device=device).expand(value.shape).contiguous()
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return made.uniform_(0.1, 1.0)  # positive, as importances have to be


def tune(
    calls: Iterable[Call],
    device: torch.device,
    time: Timer,
) -> dict[str, dict[str, tuning.Options]]:
    """The options that beat the default, by kernel and shape class.

    Args:
        calls: what to measure.
        device: where to measure.
        time: measures a call.
    """
    rows: dict[str, dict[str, tuning.Options]] = {}
    best: dict[tuple[str, str], float] = {}
    for name, args in calls:
        operator = getattr(getattr(torch.ops, NAMESPACE), name)
        args = tuple(_real(a, device) for a in args)
        with tuning.asking() as asked:
            want = operator(*args)
        for kernel, shape_class in sorted(asked):
            tunable = tuning.KERNELS[kernel]
            with tunable.trying():
                default = time(lambda: operator(*args))  # noqa: B023 called at once
            for options in tunable.space:
                with tunable.trying(**options):
                    share = _share(lambda: operator(*args), want, time, default)  # noqa: B023
                if share < best.get((kernel, shape_class), _GAIN):
                    best[kernel, shape_class] = share
                    rows.setdefault(kernel, {})[shape_class] = options
    return rows


def twins(
    calls: Iterable[Call], device: torch.device, time: Timer
) -> dict[str, dict[str, tuning.Options]]:
    """Where another CUDA kernel is the fastest for a convolution or its weight gradient."""
    rows: dict[str, dict[str, tuning.Options]] = {}
    for name, args in calls:
        if name not in (cuda.CONVOLUTION, f"{cuda.CONVOLUTION}_backward"):
            continue
        x, weight = _operands(name, args)
        shape_class, names = cuda.convolution_class(x, weight), _twins(name, x, weight, device)
        if name.endswith("_backward"):  # the input's is a convolution
            args = (*args[:4], False, True)
        args = tuple(_real(a, device) for a in args)
        if cuda.declines(args[0]):
            return {}
        plain = partial(getattr(kernels("cuda"), name), *args)
        want, default = plain(), time(plain)
        shares = {
            twin: _share(partial(getattr(kernels("cuda"), twin), *args), want, time, default)
            for twin in names
        }
        best = min(shares, key=shares.__getitem__, default=None)
        if best is not None and shares[best] < _GAIN:
            rows.setdefault(best, {})[shape_class] = {"faster": True}
    return rows


def _operands(name: str, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """A convolution's x and weight; its gradients are of them, given dy."""
    x, weight = args[1:3] if name.endswith("_backward") else args[:2]
    return x, weight


def _twins(name: str, x: Tensor, weight: Tensor, device: torch.device) -> list[str]:
    """Other kernels of a convolution or its gradients, as far as this GPU has them."""
    return [
        name.replace(cuda.CONVOLUTION, twin)
        for twin in cuda.TWINS
        if cuda.allows(twin, x, weight) and (twin != cuda.TMA or cuda.has_tma(device))
    ]


# By operator of the Triton library, whose gradients' names end in _backward: the table's row, and
# the class of a call with such arguments.
_RIVALS: dict[str, tuple[str, Callable[[tuple[Any, ...]], str]]] = {
    cuda.CONVOLUTION: (cuda.CONVOLUTIONS, lambda a: cuda.convolution_class(a[0], a[1])),
    f"{cuda.CONVOLUTION}_backward": (
        cuda.CONVOLUTIONS,
        lambda a: cuda.convolution_class(a[1], a[2]),
    ),
    "token_shrink": (cuda.TOKENS, lambda a: cuda.token_class(a[0])),
    "token_shrink_backward": (cuda.TOKENS, lambda a: cuda.token_class(a[1])),
    "token_recover": (cuda.TOKENS, lambda a: cuda.token_class(a[0])),
    "token_recover_backward": (cuda.TOKENS, lambda a: cuda.token_class(a[0])),
    "token_recover_with_importance": (cuda.TOKENS, lambda a: cuda.token_class(a[0])),
    "token_recover_with_importance_backward": (cuda.TOKENS, lambda a: cuda.token_class(a[0])),
}


def rivals(
    calls: Iterable[Call], device: torch.device, time: Timer
) -> dict[str, dict[str, tuning.Options]]:
    """Where the CUDA kernels beat Triton's in every call of a class, gradients included."""
    shares: dict[tuple[str, str], list[float]] = {}
    for name, args in calls:
        if name not in _RIVALS:
            continue
        row, classify = _RIVALS[name]
        args = tuple(_real(a, device) for a in args)
        if cuda.declines(args[0]):
            continue
        names = [name]
        if row == cuda.CONVOLUTIONS:
            names += _twins(name, *_operands(name, args), device)
        ours = [getattr(kernels("cuda"), one) for one in names]
        triton = partial(getattr(kernels("triton"), name), *args)
        want, default = triton(), time(triton)
        best = min(_share(partial(kernel, *args), want, time, default) for kernel in ours)
        shares.setdefault((row, classify(args)), []).append(best)
    rows: dict[str, dict[str, tuning.Options]] = {}
    for (row, shape_class), found in shares.items():
        if max(found) < _GAIN:
            rows.setdefault(row, {})[shape_class] = {"faster": True}
    return rows


def _share(call: Callable[[], Any], want: Any, time: Timer, default: float) -> float:
    """The time of a call relative to the default's; infinite if it fails or is wrong."""
    try:
        right = _agree(_tensors(call()), _tensors(want))
    except (RuntimeError, TritonError):  # more shared memory than there is, say
        return float("inf")
    return time(call) / default if right else float("inf")


def _agree(got: Iterable[Tensor], want: Iterable[Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=2e-2, atol=2e-2 * (b.abs().max().item() if b.numel() else 0))
        for a, b in zip(got, want, strict=True)
    )


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


# The calls: every operator at the models' shapes, forward and backward.

_LOCAL = [(8, 56, 56, 64), (8, 28, 28, 128), (8, 40, 40, 56), (8, 20, 20, 112)]
_GLOBAL = [  # grid and heads
    ((8, 14, 14, 320), 5),
    ((8, 7, 7, 512), 8),
    ((16, 14, 14, 320), 5),
    ((8, 10, 10, 224), 8),
    ((8, 5, 5, 448), 16),
]


def operators(batch: int, dtype: torch.dtype) -> None:
    """UniFormer's operators on meta tensors."""

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)

    def dense(C_in: int, C_out: int) -> tuple[Tensor, Tensor]:
        return new(C_out, C_in), new(C_out)

    results = [
        ops.patch_embed(
            new(batch, 16, 224, 224, 3),
            new(64, 3, 3, 4, 4),
            *(new(64) for _ in range(3)),
            stride=(2, 4, 4),
            padding=(1, 0, 0),
        )
    ]
    for *grid, C in _LOCAL:
        x = new(batch, *grid, C)
        results.append(ops.depthwise_conv3d(x, new(C, 1, 3, 3, 3), new(C), residual=True))
        results.append(ops.depthwise_conv3d(x, new(C, 1, 5, 5, 5), new(C)))
        results.append(ops.linear(x, *dense(C, C), residual=x))
        results.append(ops.feed_forward(x, *dense(C, 4 * C), *dense(4 * C, C), residual=x))
    for (*grid, C), heads in _GLOBAL:
        x = new(batch, *grid, C)
        tokens = x.flatten(1, 3)
        results.append(ops.depthwise_conv3d(x, new(C, 1, 3, 3, 3), new(C), residual=True))
        results.append(ops.layer_norm(tokens, new(C), new(C)))
        results.append(ops.joint_attention(new(batch, tokens.shape[1], 3 * C), heads))
        results.append(ops.linear(tokens, *dense(C, C), residual=tokens))
        results.append(
            ops.feed_forward(tokens, *dense(C, 4 * C), *dense(4 * C, C), residual=tokens)
        )
    results += _others(batch, new, dense)
    local_blocks(batch, dtype)
    torch.autograd.backward(results, [torch.empty_like(result) for result in results])


def local_blocks(batch: int, dtype: torch.dtype) -> None:
    """Local blocks at inference on meta tensors, as a prepared model keeps its weights."""

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def taps(*kernel: int) -> Tensor:
        return new(1, *kernel, shape[-1]).movedim(-1, 0)

    for shape in _LOCAL:
        C = shape[-1]
        y, z = ops.depthwise_linear(new(batch, *shape), taps(3, 3, 3), new(C), new(C, C), new(C))
        layers = new(C, C), new(C), new(4 * C, C), new(4 * C), new(C, 4 * C), new(C)
        ops.depthwise_feed_forward(z, y, taps(5, 5, 5), new(C), *layers)


def _others(
    batch: int,
    new: Callable[..., Tensor],
    dense: Callable[[int, int], tuple[Tensor, Tensor]],
) -> list[Tensor]:
    """Operators of one family each: windows, hourglass blocks, UniFormerV2, batch statistics."""
    qkv = new(1, 1, 50, 80, 3 * 320)
    results = [ops.window_attention(qkv, new(3 * 320), 5, 14)]

    tokens = new(batch, 800, 224)
    importance = tokens.detach().new_empty(batch, 800, dtype=torch.float32)
    kept, index = ops.token_shrink(tokens, importance, 400, prefix=new(batch, 1, 224))
    recovered = tokens, index, kept[:, 1:-1], kept[:, -1:]
    results.append(ops.token_recover(*recovered))
    y, score = ops.joint_attention_with_score(new(batch, 402, 3 * 224), 8)
    results += y, *ops.token_recover_with_importance(*recovered, importance, score)

    layers = new(768), new(768), *dense(768, 3 * 768)
    results.append(ops.query_attention(new(batch, 1, 768), new(batch, 1576, 768), *layers, 12))

    x, mean = new(batch, 8, 56, 56, 64), torch.empty(64, device="meta")
    weight, bias = dense(64, 64)
    y, moments = ops.depthwise_conv3d_with_moments(x, new(64, 1, 3, 3, 3), new(64), shift=mean)
    for m in (moments, ops.moments(y, shift=mean)):
        count = y[..., 0].numel()
        results += ops.fold_batch_norm(weight, bias, mean, m, new(64), new(64), count=count)[:2]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m uniformer_kernels.tune", description=__doc__)
    parser.add_argument("--batch", type=int, default=16, help="clips")
    parser.add_argument(
        "--winners",
        action="store_true",
        help="choose among kernels only: tile sizes stay as the table has them",
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("expected a GPU that torch can use, found none")
    device = torch.device("cuda")
    calls = [
        call
        for dtype in (torch.bfloat16, torch.float32)
        for call in calls_of(partial(operators, options.batch, dtype))
    ]
    time = partial(do_bench, return_mode="median")
    name = tuning.architecture(device)
    rows: dict[str, dict[str, tuning.Options]]
    if options.winners:
        rows = {k: dict(found) for k, found in tuning.rows(name).items() if k in tuning.KERNELS}
    else:
        rows = tune(calls, device, time)
        tuning.rewrite(name, rows)  # with which Triton's kernels are their best
    rows |= twins(calls, device, time) | rivals(calls, device, time)
    tuning.rewrite(name, rows)
    for kernel, found in rows.items():
        for shape_class, choice in found.items():
            print(f"{kernel:<28}{shape_class:<24}{choice}")


if __name__ == "__main__":
    main()
