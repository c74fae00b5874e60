"""The numerical contract every kernel is held to, for its output and every gradient.

Against the same computation in float64, a kernel's error is at most twice the error of the plain
PyTorch reference in the kernel's own precision, plus a floor for the case that the reference was
lucky: one rounding of the result and a random walk of roundings along the longest sum. Where the
error is below the floor already, the reference need not be computed in that precision.

The reference runs with oneDNN and without, and the better of the two counts: in bfloat16 and with
five frames' reach, oneDNN's depthwise weight gradient reads memory nobody wrote (torch 2.13).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor

Function = Callable[..., Tensor]
Tensors = Mapping[str, Tensor | None]

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unit normal numbers, exact in ``dtype``: the floor takes terms to be about one."""
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def evaluate(
    function: Function,
    inputs: Tensors,
    *,
    upstream: Callable[[Tensor], Tensor] | None = None,
    needs: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The output, as ``"output"``, and the gradient of every input in ``needs`` (all of them)."""
    leaves = {name: None if t is None else t.detach() for name, t in inputs.items()}
    wanted = {
        name: t.requires_grad_()
        for name, t in leaves.items()
        if t is not None and (needs is None or name in needs)
    }
    output = function(**leaves)
    results = {"output": output.detach()}
    if wanted:
        dy = draw(*output.shape) if upstream is None else upstream(output.detach())
        gradients = torch.autograd.grad(output, list(wanted.values()), dy.to(output))
        results |= dict(zip(wanted, gradients, strict=True))
    return results


def check(
    kernel: Function,
    reference: Function,
    inputs: Tensors,
    *,
    reduction: int,
    upstream: Callable[[Tensor], Tensor] | None = None,
    needs: Collection[str] | None = None,
) -> None:
    """Hold ``kernel`` to the contract at ``inputs``.

    Args:
        kernel: the function under test.
        reference: the same function in plain PyTorch.
        inputs: arguments by name, in the precision under test and in any layout.
        reduction: the longest sum behind any element of the output or a gradient.
        upstream: makes the output's gradient from the output, unit normal by default.
        needs: the inputs whose gradients are asked for, all by default.
    """
    before = {name: t.clone() for name, t in inputs.items() if t is not None}
    output = kernel(**inputs)
    dy = draw(*output.shape).to(output) if upstream is None else upstream(output)
    exact_inputs = {name: None if t is None else t.double() for name, t in inputs.items()}

    got = evaluate(kernel, inputs, upstream=lambda _: dy, needs=needs)
    exact = evaluate(reference, exact_inputs, upstream=lambda _: dy, needs=needs)

    @cache
    def plain() -> list[dict[str, Tensor]]:
        found = [evaluate(reference, inputs, upstream=lambda _: dy, needs=needs)]
        with without_onednn():
            found.append(evaluate(reference, inputs, upstream=lambda _: dy, needs=needs))
        return found

    assert got.keys() == exact.keys()
    for name in exact:
        _meets(name, got[name], partial(_each, plain, name), exact[name], reduction)
    with torch.no_grad():
        assert output.dtype == reference(**inputs).dtype
    for name, t in before.items():
        assert torch.equal(inputs[name], t), f"{name} was written to"


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """PyTorch's own kernels, also where it would call oneDNN's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TF32 on Intel's GPUs
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def within(
    name: str, got: Tensor, plain: Sequence[Tensor], exact: Tensor, *, reduction: int
) -> None:
    """``got`` meets the contract, ``plain`` and ``exact`` being the reference's results."""
    assert got.dtype == plain[0].dtype, f"{name}: {got.dtype} is not {plain[0].dtype}"
    _meets(name, got, lambda: plain, exact, reduction)


def _meets(
    name: str,
    got: Tensor,
    plain: Callable[[], Iterable[Tensor]],
    exact: Tensor,
    reduction: int,
) -> None:
    assert got.shape == exact.shape, f"{name}: {tuple(got.shape)} is not {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    accumulate = torch.promote_types(got.dtype, torch.float32)
    steps = torch.finfo(got.dtype).eps + reduction**0.5 * torch.finfo(accumulate).eps
    allowed = steps * max(1.0, exact.abs().max().item())
    error = _error(got, exact)
    if not error <= allowed:
        allowed += 2 * min(_error(p, exact) for p in plain())
    assert error <= allowed, f"{name}: error {error:.3g} where {allowed:.3g} is allowed"


def _each(results: Callable[[], list[dict[str, Tensor]]], name: str) -> Iterator[Tensor]:
    return (found[name] for found in results())


def _error(got: Tensor, exact: Tensor) -> float:
    """The largest; infinite where there is a number that is none."""
    return (got.double() - exact).abs().max().nan_to_num(nan=torch.inf).item()
