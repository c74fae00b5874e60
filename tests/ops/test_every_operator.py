"""What holds for every operator alike: gradients, layouts, autocast, tracing, threads."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

from tests.contract import DTYPES, check, draw, evaluate, within
from tests.ops.calls import CALLS, DIFFERENTIABLE, Call
from uniformer_kernels.triton import INTERPRETED

every_operator = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.operator)
every_gradient = pytest.mark.parametrize("call", DIFFERENTIABLE, ids=lambda call: call.operator)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Bitwise equal, NaN included."""
    return first.keys() == second.keys() and all(bits(first[k]) == bits(second[k]) for k in first)


def bits(t: torch.Tensor) -> bytes:
    return t.contiguous().view(torch.uint8).numpy().tobytes()


@every_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(call: Call, dtype: torch.dtype, backend: str) -> None:
    check(
        call.kernel,
        call.reference,
        call.inputs(dtype),
        reduction=call.reduction,
        needs=call.needs,
    )


@every_gradient
def test_gradcheck(call: Call, backend: str) -> None:
    inputs = call.inputs(torch.float64)

    def positional(*tensors: torch.Tensor) -> torch.Tensor:
        return call.kernel(**dict(zip(inputs, tensors, strict=True)))

    leaves = [t.requires_grad_() for t in inputs.values()]
    # Along random directions: the full Jacobian takes a thousand times the calls.
    assert gradcheck(positional, leaves, nondet_tol=0.0, fast_mode=True)


@every_gradient
def test_any_choice_of_gradients(call: Call, backend: str) -> None:
    """Asking for some gradients only changes none of them and makes no others."""
    inputs = call.inputs()
    dy = draw(*call.kernel(**inputs).shape)
    everything = evaluate(call.kernel, inputs, upstream=lambda _: dy)
    # The interpreter gets them one by one, and all but one.
    counts = sorted({0, 1, len(inputs) - 1}) if INTERPRETED else range(len(inputs))
    for count in counts:
        for needs in combinations(inputs, count):
            some = evaluate(call.kernel, inputs, upstream=lambda _: dy, needs=needs)
            assert some.keys() == {"output", *needs}
            for name, result in some.items():
                torch.testing.assert_close(result, everything[name])


@every_gradient
def test_only_required_gradients_reach_the_leaves(call: Call, backend: str) -> None:
    inputs = call.inputs()
    first, *others = inputs
    inputs[first].requires_grad_()
    call.kernel(**inputs).sum().backward()
    assert inputs[first].grad is not None
    assert all(inputs[name].grad is None for name in others)
    with torch.no_grad():
        assert not call.kernel(**inputs).requires_grad


@every_gradient
def test_the_result_may_be_written_to(call: Call, backend: str) -> None:
    """By an activation in place, say: autograd forbids it for views that a Function returns."""
    inputs = call.inputs()
    first = next(iter(inputs))
    for residual in (inputs.get("residual"), None):
        leaves = inputs | {first: inputs[first].requires_grad_()}
        if "residual" in inputs:
            leaves["residual"] = residual
        want = 2 * call.kernel(**leaves)
        assert torch.equal(call.kernel(**leaves).mul_(2), want)


@every_operator
def test_empty_batch(call: Call, backend: str) -> None:
    """Nothing in, nothing out, and parameters get zeros, as from PyTorch."""
    first = next(iter(call.shapes))
    inputs = call.inputs()
    inputs |= {k: t[:0] for k, t in inputs.items() if k in (first, "residual", "memory")}
    results = evaluate(call.kernel, inputs, needs=call.needs)
    output = results.pop("output")
    assert output.shape == (0, *call.kernel(**call.inputs()).shape[1:])
    for name, gradient in results.items():
        assert gradient.shape == inputs[name].shape
        assert not gradient.any()


@every_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_input_in_any_layout(call: Call, dtype: torch.dtype, backend: str) -> None:
    """Transposed, sliced, and at an address no vector is aligned to: all at once, and each."""

    def scattered(t: torch.Tensor) -> torch.Tensor:
        room = draw(*(2 * size + 1 for size in reversed(t.shape)), dtype=dtype)
        view = room.permute(*reversed(range(t.dim())))[tuple(slice(1, None, 2) for _ in t.shape)]
        return view.copy_(t)

    inputs = call.inputs(dtype)
    other = {name: scattered(t) for name, t in inputs.items()}
    for changed in (other, *({name: t} for name, t in other.items())):
        check(
            call.kernel,
            call.reference,
            inputs | changed,
            reduction=call.reduction,
            needs=call.needs,
        )


@every_gradient
def test_expanded_gradient(call: Call, backend: str) -> None:
    """One number for all, as a mean sends back: roundings add up in a line, not as a walk."""
    check(
        call.kernel,
        call.reference,
        call.inputs(),
        reduction=call.reduction**2,
        upstream=lambda y: draw(1).to(y.dtype).expand(y.shape),
    )


@every_gradient
@pytest.mark.parametrize(
    "upstream",
    [
        lambda y: draw(*reversed(y.shape)).to(y.dtype).permute(*reversed(range(y.dim()))),
        lambda y: draw(*y.shape[:-1], y.shape[-1] + 3).to(y.dtype)[..., 2:-1],
    ],
    ids=["transposed", "sliced"],
)
def test_gradient_in_any_layout(call: Call, upstream, backend: str) -> None:
    check(call.kernel, call.reference, call.inputs(), reduction=call.reduction, upstream=upstream)


@every_operator
def test_lazily_negated_input(call: Call, backend: str) -> None:
    """A view with the negative bit: its storage holds the opposite of its values."""
    inputs = call.inputs()
    first = next(iter(inputs))
    negated = torch.complex(inputs[first], -inputs[first]).conj().imag
    assert negated.is_neg()
    torch.testing.assert_close(call.kernel(**inputs | {first: negated}), call.kernel(**inputs))


@every_operator
def test_bitwise_repeatable(call: Call, backend: str) -> None:
    inputs = call.inputs()
    dy = draw(*call.kernel(**inputs).shape)
    results = []
    for threads in (1, 1) if INTERPRETED else (1, 1, 2, 2):  # it has no threads
        torch.set_num_threads(threads)
        results.append(evaluate(call.kernel, inputs, upstream=lambda _: dy, needs=call.needs))
    assert all(map(same, results[::2], results[1::2]))


@every_gradient
def test_backward_twice_and_shared_inputs(call: Call, backend: str) -> None:
    inputs = {name: t.requires_grad_() for name, t in call.inputs().items()}
    y = call.kernel(**inputs)
    once = torch.autograd.grad(y.sum(), list(inputs.values()), retain_graph=True)
    again = torch.autograd.grad(y.sum(), list(inputs.values()))
    both = torch.autograd.grad(
        (call.kernel(**inputs) + call.kernel(**inputs)).sum(), list(inputs.values())
    )
    for a, b, c in zip(once, again, both, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, 2 * a)


@every_gradient
def test_writing_to_an_input_before_backward(call: Call, backend: str) -> None:
    """Either the gradients do not depend on the input any more, or autograd refuses."""
    inputs = {name: t.requires_grad_() for name, t in call.inputs().items()}
    leaves = list(inputs.values())
    want = torch.autograd.grad(call.kernel(**inputs).sum(), leaves)
    first = next(iter(inputs))
    x = inputs[first] * 1
    y = call.kernel(**inputs | {first: x})
    x.zero_()
    with contextlib.suppress(RuntimeError):
        torch.testing.assert_close(torch.autograd.grad(y.sum(), leaves), want)


@every_operator
def test_autocast(call: Call, backend: str) -> None:
    """Computes in autocast's dtype like PyTorch's own, and gives float32 gradients."""
    inputs = call.inputs()

    def under_autocast(function):
        def run(**tensors: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return function(**tensors)

        return run

    dy = draw(*call.kernel(**inputs).shape)
    options = {"upstream": lambda _: dy, "needs": call.needs}
    got = evaluate(under_autocast(call.kernel), inputs, **options)
    assert all(got[name].dtype == torch.float32 for name in got.keys() & inputs.keys())

    plain = evaluate(under_autocast(call.reference), inputs, **options)
    exact = evaluate(call.reference, {k: t.double() for k, t in inputs.items()}, **options)
    assert got["output"].dtype == plain["output"].dtype
    for name in exact:  # some are float32, computed from bfloat16: its floor is theirs
        rounded = [plain[name].bfloat16()]
        within(name, got[name].bfloat16(), rounded, exact[name], reduction=call.reduction)


@every_operator
def test_autocast_leaves_float64_alone(call: Call, backend: str) -> None:
    inputs = call.inputs(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = call.kernel(**inputs)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, call.kernel(**inputs))


@every_operator
def test_fake_tensors(call: Call, backend: str) -> None:
    """Shape, dtype and layout without data, for the output and the gradients."""
    inputs = call.inputs()
    real = evaluate(call.kernel, inputs, needs=call.needs)
    with FakeTensorMode() as mode:
        fakes = {k: mode.from_tensor(t) for k, t in inputs.items()}
        fake = evaluate(call.kernel, fakes, needs=call.needs)
    for name in real:
        assert fake[name].shape == real[name].shape
        assert fake[name].dtype == real[name].dtype
        if name == "output":
            assert fake[name].stride() == real[name].stride()


@every_operator
def test_compiles_without_a_graph_break(call: Call) -> None:
    inputs = call.inputs()
    dy = draw(*call.kernel(**inputs).shape)
    torch.compiler.reset()
    compiled = torch.compile(call.kernel, fullgraph=True, backend="aot_eager")
    got = evaluate(compiled, inputs, upstream=lambda _: dy, needs=call.needs)
    want = evaluate(call.kernel, inputs, upstream=lambda _: dy, needs=call.needs)
    for name in want:
        torch.testing.assert_close(got[name], want[name])


@every_operator
def test_compiles_for_any_batch(call: Call) -> None:
    torch.compiler.reset()
    compiled = torch.compile(call.kernel, fullgraph=True, backend="aot_eager", dynamic=True)
    first = next(iter(call.shapes))
    for batch in (2, 3, 5):
        inputs = call.inputs()
        batched = [k for k in inputs if k in (first, "residual", "memory")]
        inputs |= {k: draw(batch, *call.shapes[k][1:]) for k in batched}
        torch.testing.assert_close(compiled(**inputs), call.kernel(**inputs))


def test_compiles_with_inductor() -> None:
    """All operators in one function, so one compilation: values and gradients."""

    def everything(inputs: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        return sum(
            call.kernel(**tensors).square().mean()
            for call, tensors in zip(CALLS, inputs, strict=True)
        )

    inputs = [call.inputs() for call in CALLS]
    leaves = [
        t.requires_grad_()
        for call, tensors in zip(CALLS, inputs, strict=True)
        if call in DIFFERENTIABLE
        for t in tensors.values()
    ]
    torch.compiler.reset()
    compiled = torch.compile(everything, fullgraph=True)
    got, want = compiled(inputs), everything(inputs)
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@every_operator
def test_calls_from_two_threads(call: Call) -> None:
    jobs = [(call.inputs(), draw(*call.kernel(**call.inputs()).shape)) for _ in range(16)]

    def work(job) -> dict[str, torch.Tensor]:
        inputs, dy = job
        return evaluate(call.kernel, inputs, upstream=lambda _: dy, needs=call.needs)

    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(work, jobs))
    assert all(same(a, work(job)) for a, job in zip(at_once, jobs, strict=True))


@every_operator
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_refuses_dtypes_that_are_no_floats(call: Call, dtype: torch.dtype) -> None:
    inputs = call.inputs()
    first = next(iter(inputs))
    with pytest.raises(TypeError, match=rf"{call.operator}: {first}: .*float32.*got {dtype}"):
        call.kernel(**{name: t.to(dtype) for name, t in inputs.items()})


@every_operator
def test_refuses_what_is_no_tensor(call: Call) -> None:
    inputs = call.inputs()
    first = next(iter(inputs))
    with pytest.raises(TypeError, match=rf"{call.operator}: {first}: expected .*got list"):
        call.kernel(**inputs | {first: inputs[first].tolist()})


@pytest.mark.parametrize(
    ("call", "name"),
    [(call, name) for call in CALLS for name in list(call.shapes)[1:]],
    ids=lambda value: getattr(value, "operator", value),
)
def test_refuses_mixed_tensors(call: Call, name: str) -> None:
    inputs = call.inputs()
    if name != "residual":  # which may be wider
        with pytest.raises(TypeError, match=rf"{call.operator}: {name}: .*float32.*float64"):
            call.kernel(**inputs | {name: inputs[name].double()})
    with pytest.raises(ValueError, match=rf"{call.operator}: {name}: .*cpu.*meta"):
        call.kernel(**inputs | {name: inputs[name].to("meta")})


@every_operator
def test_refuses_wrong_ranks(call: Call) -> None:
    inputs = call.inputs()
    for name, t in inputs.items():
        any_rank = name == "x" and call.operator in ("layer_norm", "linear", "feed_forward")
        wrong = t.sum() if any_rank else t[None]
        with pytest.raises(ValueError, match=rf"{call.operator}: {name}: expected \[.*got"):
            call.kernel(**inputs | {name: wrong})


@every_operator
def test_sizes_of_one(call: Call, backend: str) -> None:
    """A single sample of a single position, so every stride is free."""
    inputs = call.inputs()
    first = next(iter(inputs))
    keep = (1, 1, 4, 4) if call.operator == "patch_embed" else (1,) * (inputs[first].dim() - 1)
    cut = tuple(slice(size) for size in keep)
    inputs |= {k: t[cut] for k, t in inputs.items() if k in (first, "residual", "memory")}
    check(call.kernel, call.reference, inputs, reduction=call.reduction, needs=call.needs)
