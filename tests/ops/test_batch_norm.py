"""Batch statistics, and batch normalisation folded into the layer behind it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

from tests.contract import DTYPES, check, draw, evaluate
from uniformer_kernels import fold_batch_norm, moments, reference
from uniformer_kernels.kernels import kernels

LAYOUTS = {
    "transposed": lambda t: (
        t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))
    ),
    "sliced": lambda t: F.pad(t, (3, 2))[..., 3:-2],
    "every other": lambda t: t.repeat_interleave(2, -1)[..., ::2],
}


def several_programs(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Small tiles and few groups, so that small inputs need several of everything."""
    if backend == "triton":
        from uniformer_kernels.triton import batch_norm

        monkeypatch.setattr(batch_norm, "_GROUPS", 4)
        monkeypatch.setattr(batch_norm, "_BLOCK_C", 16)
        monkeypatch.setattr(batch_norm, "_FORWARD", {"BLOCK_R": 4, "BLOCK_C": 16})
        monkeypatch.setattr(batch_norm, "_BACKWARD", {"BLOCK_R": 4, "BLOCK_C": 16})


# Moments


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 7, 12), (1, 1), (130, 56), (3, 0, 4), (5, 300)], ids=str)
@pytest.mark.parametrize("shifted", [False, True])
def test_moments(shifted: bool, shape, dtype, backend: str) -> None:
    shift = draw(shape[-1]).to(torch.promote_types(dtype, torch.float32)) if shifted else None
    rows = shape[0] * (shape[1] if len(shape) == 3 else 1)

    def of(operator):
        def run(x: Tensor) -> Tensor:
            wide = torch.promote_types(x.dtype, torch.float32)
            return operator(x, shift=None if shift is None else shift.to(wide))

        return run

    inputs = {"x": draw(*shape, dtype=dtype)}
    check(of(moments), of(reference.moments), inputs, reduction=max(rows, 1))


def test_moments_of_several_programs(monkeypatch, backend: str) -> None:
    several_programs(monkeypatch, backend)
    shift = draw(40)
    inputs = {"x": draw(1100, 40)}
    got = evaluate(partial(moments, shift=shift), inputs, upstream=lambda y: torch.ones_like(y))
    want = evaluate(
        partial(reference.moments, shift=shift), inputs, upstream=lambda y: torch.ones_like(y)
    )
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-3)


def test_moments_keep_a_small_variance_beside_a_large_mean(backend: str) -> None:
    x = draw(4096, 8) / 16 + 100
    first, second = moments(x, shift=torch.full((8,), 100.0)) / len(x)
    torch.testing.assert_close(second - first.square(), x.double().var(0, correction=0).float())


def test_moments_gradcheck(backend: str) -> None:
    x = draw(5, 3, dtype=torch.float64).requires_grad_()
    assert gradcheck(partial(moments, shift=draw(3, dtype=torch.float64)), [x], nondet_tol=0.0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_moments_in_any_layout(layout, backend: str) -> None:
    check(moments, reference.moments, {"x": layout(draw(3, 5, 12))}, reduction=15)
    upstream = {"upstream": lambda y: layout(draw(*y.shape))}
    check(moments, reference.moments, {"x": draw(3, 5, 12)}, reduction=15, **upstream)
    shift = layout(draw(2, 12))[1]
    torch.testing.assert_close(
        moments(draw(3, 12) * 0, shift=shift), torch.stack([-3 * shift, 3 * shift.square()])
    )


def test_moments_are_repeatable(backend: str) -> None:
    inputs, dy = {"x": draw(2000, 24)}, draw(2, 24)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(evaluate(moments, inputs, upstream=lambda _: dy))
    if backend != "reference":
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_moments_shift_is_a_constant(backend: str) -> None:
    if backend == "reference":
        pytest.skip("plain PyTorch differentiates it")
    shift = draw(3).requires_grad_()
    result = moments(draw(4, 3).requires_grad_(), shift=shift)
    assert torch.autograd.grad(result.sum(), shift, allow_unused=True) == (None,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_moments_of_fake_tensors(dtype, backend: str) -> None:
    real = evaluate(moments, {"x": draw(2, 3, 8, dtype=dtype)})
    with FakeTensorMode() as mode:
        fake = evaluate(moments, {"x": mode.from_tensor(draw(2, 3, 8, dtype=dtype))})
    for name, t in real.items():
        assert (fake[name].shape, fake[name].dtype) == (t.shape, t.dtype)


def test_moments_opcheck(backend: str) -> None:
    if backend == "reference":
        pytest.skip("no operator of its own")
    ops = kernels(backend)
    x, dy, shift, dmoments = draw(9, 5), draw(9, 5), draw(5), draw(2, 5)
    for given in (None, shift):
        torch.library.opcheck(ops.moments.default, (x, given))
        for slope in (None, dy):
            torch.library.opcheck(ops.moments_backward.default, (slope, x, given, dmoments))


def test_moments_compile_without_a_graph_break() -> None:
    inputs, dy = {"x": draw(3, 5, 6)}, draw(2, 6)
    torch.compiler.reset()
    compiled = torch.compile(moments, fullgraph=True, backend="aot_eager")
    got, want = (evaluate(f, inputs, upstream=lambda _: dy) for f in (compiled, moments))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("x", "shift", "error", "message"),
    [
        (draw(3, 4), draw(5), ValueError, r"shift: expected \[4\], got \[5\]"),
        (draw(3, 4), draw(4).half(), TypeError, "shift: expected torch.float32 .*float16"),
        (draw(3, 4), draw(4).to("meta"), ValueError, "shift: expected on cpu, got meta"),
        (draw(3, 4).long(), None, TypeError, "x: expected one of .*int64"),
        (draw(), None, ValueError, r"x: expected \[\.\.\., C\]"),
    ],
    ids=["size", "dtype", "device", "integers", "no axes"],
)
def test_moments_refuse_what_does_not_fit(x, shift, error, message) -> None:
    with pytest.raises(error, match=f"moments: {message}"):
        moments(x, shift=shift)


# Folding

COUNT = 30
MODES = {"running": None, "batch": COUNT}
without = pytest.mark.parametrize(
    "without", [(), ("bias",), ("norm_weight", "norm_bias"), ("mean",)], ids=str
)
modes = pytest.mark.parametrize("count", MODES.values(), ids=MODES)


def folding(
    out: int,
    C: int,
    count: int | None,
    dtype: torch.dtype = torch.float32,
    norm: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Arguments; the norm's tensors in a dtype of their own, moments in float32 at least."""
    norm = norm or dtype
    inputs = {
        "weight": draw(out, C, dtype=dtype),
        "bias": draw(out, dtype=dtype),
        "mean": draw(C, dtype=norm),
        "norm_weight": draw(C, dtype=norm),
        "norm_bias": draw(C, dtype=norm),
    }
    if count is None:
        statistics = (draw(C).abs() + 0.5).to(norm)
    else:
        statistics = reference.moments(draw(count, C)).to(torch.promote_types(norm, torch.float32))
    return inputs | {"statistics": statistics}


def both(operator, **options):
    """Weight and bias in one tensor, so that gradients flow through both."""

    def run(**inputs: Tensor | None) -> Tensor:
        weight, bias, _ = operator(**inputs, **options)
        return torch.cat([weight.flatten(), bias])

    return run


def compare(inputs: dict[str, Tensor | None], count: int | None, **options) -> None:
    kernel, plain = (both(f, count=count) for f in (fold_batch_norm, reference.fold_batch_norm))
    needs = [name for name, t in inputs.items() if t is not None and name != "mean"]
    out, C = inputs["weight"].shape
    check(kernel, plain, inputs, reduction=max(out * C, 1), needs=needs, **options)


@modes
@without
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fold(dtype, without, count, backend: str) -> None:
    inputs = folding(20, 12, count, dtype)
    compare(inputs | dict.fromkeys(without), count)


@modes
@pytest.mark.parametrize("shape", [(1, 1), (40, 70), (3, 300), (260, 5), (0, 4), (4, 0)], ids=str)
def test_fold_shapes(shape, count, backend: str) -> None:
    compare(folding(*shape, count), count)


@modes
def test_fold_of_several_programs(count, monkeypatch, backend: str) -> None:
    several_programs(monkeypatch, backend)
    compare(folding(21, 40, count), count)


@modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_fold_beside_a_norm_in_float32(dtype, count, backend: str) -> None:
    compare(folding(20, 12, count, dtype, torch.float32), count)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shifted", [False, True])
def test_a_folded_norm_is_the_norm(shifted: bool, dtype, backend: str) -> None:
    x, shift = draw(40, 6, dtype=dtype) + 3, torch.full((6,), 2.5, dtype=dtype) if shifted else None
    weight, bias, gamma, beta = (draw(*s, dtype=dtype) for s in ((5, 6), (5,), (6,), (6,)))
    leaves = [t.requires_grad_() for t in (x, weight, bias, gamma, beta)]
    running = torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)

    found = moments(x, shift=shift)
    *folded, batch = fold_batch_norm(weight, bias, shift, found, gamma, beta, count=len(x))
    got = F.linear(x, *folded)
    want = F.linear(F.batch_norm(x, *running, gamma, beta, True, 1.0), weight, bias)
    tolerance = (
        {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 0, "atol": 1e-3}
    )
    torch.testing.assert_close(got, want, **tolerance)
    torch.testing.assert_close(batch, torch.stack(running), **tolerance)
    assert not batch.requires_grad
    dy = draw(40, 5).to(dtype)
    for a, b in zip(
        torch.autograd.grad(got, leaves, dy), torch.autograd.grad(want, leaves, dy), strict=True
    ):
        torch.testing.assert_close(a, b, **tolerance)


def test_a_variance_that_would_be_negative_is_zero(backend: str) -> None:
    """Rounding can make it so; there it is a constant."""
    inputs = folding(3, 2, COUNT)
    inputs["statistics"] = torch.tensor([[COUNT, COUNT], [COUNT - 1e-3, 2 * COUNT]]).float()
    weight, *_ = fold_batch_norm(**inputs, count=COUNT)
    scale = inputs["norm_weight"] / torch.tensor([0.0, 1.0]).add(1e-5).sqrt()
    torch.testing.assert_close(weight, inputs["weight"] * scale)
    inputs["statistics"].requires_grad_()
    weight, *_ = fold_batch_norm(**inputs, count=COUNT)
    (dstatistics,) = torch.autograd.grad(weight.sum(), inputs["statistics"])
    assert not dstatistics[:, 0].any()
    assert dstatistics[:, 1].all()


@modes
@pytest.mark.parametrize("name", ["weight", "statistics", "norm_weight", "norm_bias"])
def test_fold_any_choice_of_gradients(name: str, count, backend: str) -> None:
    inputs, dy = folding(5, 6, count), draw(5 * 6 + 5)
    run = both(fold_batch_norm, count=count)
    needs = [other for other in inputs if other != "mean"]
    everything = evaluate(run, inputs, upstream=lambda _: dy, needs=needs)
    one = evaluate(run, inputs, upstream=lambda _: dy, needs=[name])
    assert one.keys() == {"output", name}
    for key, result in one.items():
        torch.testing.assert_close(result, everything[key])


@modes
@pytest.mark.parametrize("which", [0, 1], ids=["weight", "bias"])
def test_fold_gradient_of_one_result(which: int, count, backend: str) -> None:
    inputs = folding(5, 6, count)

    def of(operator):
        return lambda **t: operator(**t, count=count)[which]

    needs = ["weight", "statistics", "norm_weight"]
    run, plain = of(fold_batch_norm), of(reference.fold_batch_norm)
    check(run, plain, inputs, reduction=30, needs=needs)


@modes
def test_fold_gradcheck(count, backend: str) -> None:
    inputs = folding(3, 4, count, torch.float64)
    mean = inputs.pop("mean")

    def positional(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(inputs, tensors, strict=True))
        return fold_batch_norm(mean=mean, **given, count=count)[:2]

    assert gradcheck(positional, [t.requires_grad_() for t in inputs.values()], nondet_tol=0.0)


@modes
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_fold_in_any_layout(layout, count, backend: str) -> None:
    inputs = folding(5, 6, count)
    for name in inputs:
        compare(inputs | {name: layout(inputs[name])}, count)
    weight = inputs["weight"].requires_grad_()
    dy = draw(5, 6)
    folded, *_ = fold_batch_norm(**inputs, count=count)
    (got,) = torch.autograd.grad(folded, weight, layout(dy), retain_graph=True)
    (want,) = torch.autograd.grad(folded, weight, dy)
    assert torch.equal(got, want)


@modes
def test_fold_writing_to_the_running_mean_before_backward(count, backend: str) -> None:
    """The batch's gradients do not depend on it any more; with running ones autograd refuses."""
    inputs = folding(5, 6, count)
    leaf = inputs["norm_weight"].requires_grad_()
    (want,) = torch.autograd.grad(both(fold_batch_norm, count=count)(**inputs).sum(), leaf)
    y = both(fold_batch_norm, count=count)(**inputs).sum()
    inputs["mean"].zero_()
    if count is None:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()
    else:
        assert torch.equal(torch.autograd.grad(y, leaf)[0], want)


@modes
def test_fold_is_not_changed_by_autocast(count, backend: str) -> None:
    inputs = folding(5, 6, count)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fold_batch_norm(**inputs, count=count)
    torch.testing.assert_close(got[:2], fold_batch_norm(**inputs, count=count)[:2])


@modes
def test_fold_of_fake_tensors(count, backend: str) -> None:
    inputs = folding(5, 6, count)
    needs = [name for name in inputs if name != "mean"]
    run = both(fold_batch_norm, count=count)
    real = evaluate(run, inputs, needs=needs)
    with FakeTensorMode() as mode:
        faked = {k: mode.from_tensor(t) for k, t in inputs.items()}
        fake = evaluate(run, faked, needs=needs)
        results = fold_batch_norm(**faked, count=count)
    for name, t in real.items():
        assert (fake[name].shape, fake[name].dtype) == (t.shape, t.dtype)
    for a, b in zip(results, fold_batch_norm(**inputs, count=count), strict=True):
        assert a is b is None or (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@modes
@without
def test_fold_opcheck(without, count, backend: str) -> None:
    if backend != "triton":
        pytest.skip("no operator of its own")
    inputs = folding(5, 6, count) | dict.fromkeys(without)
    names = ("weight", "bias", "mean", "statistics", "norm_weight", "norm_bias")
    weight, bias, *rest = (inputs[name] for name in names)
    ops = kernels("triton")
    torch.library.opcheck(ops.fold_batch_norm.default, (weight, bias, *rest, count, 1e-5))
    arguments = (draw(5, 6), draw(5), weight, *rest, count, 1e-5)
    torch.library.opcheck(ops.fold_batch_norm_backward.default, arguments)


@modes
def test_fold_compiles_without_a_graph_break(count, backend: str) -> None:
    inputs, dy = folding(5, 6, count), draw(5 * 6 + 5)
    needs = [name for name in inputs if name != "mean"]
    run = both(fold_batch_norm, count=count)
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    got, want = (evaluate(f, inputs, upstream=lambda _: dy, needs=needs) for f in (compiled, run))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("changed", "count", "error", "message"),
    [
        ({"weight": draw(3)}, None, ValueError, r"weight: expected \[out, C\]"),
        ({"bias": draw(6)}, None, ValueError, r"bias: expected \[5\], got \[6\]"),
        ({"mean": draw(5)}, None, ValueError, r"mean: expected \[6\], got \[5\]"),
        ({"norm_weight": draw(5)}, None, ValueError, r"norm_weight: expected \[6\]"),
        ({"norm_bias": draw(6).long()}, None, TypeError, "norm_bias: expected one of"),
        ({"norm_bias": draw(6).to("meta")}, None, ValueError, "norm_bias: expected on cpu"),
        ({"statistics": draw(2, 6)}, None, ValueError, r"statistics: expected \[6\]"),
        ({"statistics": draw(6)}, 2, ValueError, r"statistics: expected \[2, 6\]"),
        ({"statistics": draw(2, 6)}, 1, ValueError, "count: expected at least 2, got 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_fold_refuses_what_does_not_fit(changed, count, error, message) -> None:
    with pytest.raises(error, match=f"fold_batch_norm: {message}"):
        fold_batch_norm(**folding(5, 6, None) | changed, count=count)
