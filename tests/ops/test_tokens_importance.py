"""Recovering with the importance: whose becomes a running mean, of what, and its gradients."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from functools import partial
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tests.contract import DTYPES, check, draw, evaluate
from tests.ops.test_tokens import importance_of, index_of
from uniformer_kernels import (
    reference,
    token_recover,
    token_recover_with_importance,
    use_backend,
)
from uniformer_kernels.triton import INTERPRETED

NAME = "token_recover_with_importance"
CALLS = [  # shape, kept, scores in front of theirs
    ((2, 9, 12), 4, 1),
    ((1, 1, 1), 0, 0),  # the representative is all there is
    ((2, 2, 3), 1, 2),
    ((3, 30, 17), 29, 0),  # it is the one token that is not kept
    ((2, 9, 5), 9, 1),  # there is none
    ((1, 42, 28), 0, 1),
    ((2, 180, 75), 20, 3),
]
Inputs = dict[str, Tensor]


def inputs_of(
    shape: tuple[int, int, int], keep: int, prefixed: int, dtype: torch.dtype = torch.float32
) -> Inputs:
    B, N, C = shape
    return {
        "x": draw(*shape, dtype=dtype),
        "index": index_of(B, N, keep),
        "kept": draw(B, keep, C, dtype=dtype),
        "delta": draw(B, 1, C, dtype=dtype),
        "importance": importance_of(B, N, dtype),
        "score": importance_of(B, prefixed + keep + 1, dtype),
    }


def hold(inputs: Inputs, trade_off: float = 0.5) -> None:
    """The running mean against the contract, the tokens against ``token_recover``, bit by bit."""
    tokens = {name: inputs[name] for name in ("x", "index", "kept", "delta")}

    def updated(operator: Callable[..., tuple[Tensor, Tensor]], **numbers: Tensor) -> Tensor:
        return operator(**tokens, **numbers, trade_off=trade_off)[1]

    check(
        partial(updated, token_recover_with_importance),
        partial(updated, reference.token_recover_with_importance),
        {name: inputs[name] for name in ("importance", "score")},
        reduction=1,
    )
    leaves = {k: t.detach().requires_grad_(k != "index") for k, t in inputs.items()}
    y, mean = token_recover_with_importance(**leaves, trade_off=trade_off)
    alone = token_recover(**{name: leaves[name] for name in tokens})
    assert torch.equal(y, alone)
    assert y.is_contiguous()
    assert mean.is_contiguous()
    dy, dmean = draw(*y.shape).to(y), draw(*mean.shape).to(mean)
    wanted = [t for t in leaves.values() if t.requires_grad]
    got = torch.autograd.grad((y, mean), wanted, (dy, dmean), retain_graph=True)
    of_tokens = torch.autograd.grad(alone, wanted[:3], dy)
    of_numbers = torch.autograd.grad(mean, wanted[3:], dmean)
    assert all(map(torch.equal, got, (*of_tokens, *of_numbers)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "keep", "prefixed"), CALLS)
def test_values_and_gradients(shape, keep, prefixed, dtype, backend) -> None:
    hold(inputs_of(shape, keep, prefixed, dtype))


@pytest.mark.parametrize("trade_off", [0, 0.1, 0.49999, 0.9, 1, -0.3, 1.5])
def test_any_trade_off(trade_off, backend) -> None:
    hold(inputs_of((2, 9, 4), 5, 1), trade_off)
    hold(inputs_of((2, 6, 4), 5, 1), trade_off)


@pytest.mark.parametrize("keep", [4, 10])
def test_equals_the_definition(keep, backend) -> None:
    """Token by token, so that the operators cannot be wrong like their reference."""
    inputs = inputs_of((2, 11, 3), keep, 2)
    _, updated = token_recover_with_importance(**inputs, trade_off=0.25)
    old, score = inputs["importance"].tolist(), inputs["score"].tolist()
    for b, index in enumerate(inputs["index"].tolist()):
        for n in range(11):
            if n in index:
                want = 0.75 * old[b][n] + 0.25 * score[b][2 + index.index(n)]
            elif keep == 10:  # a single one is its own representative
                want = 0.75 * old[b][n] + 0.25 * score[b][-1]
            else:
                want = old[b][n]
            assert updated[b, n].item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("trade_off", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("keep", [6, 8])
def test_what_is_no_number_stays_where_it_is(keep, trade_off, backend) -> None:
    """As ``torch.lerp`` has it; the others keep their importance to the bit."""
    inputs = inputs_of((1, 9, 4), keep, 1)
    nan, inf = float("nan"), float("inf")
    inputs["index"] = torch.arange(keep)[None]
    inputs["importance"][0, :5] = torch.tensor([nan, inf, -inf, 1e38, 1.0])
    inputs["score"][0, :6] = torch.tensor([nan, 0.5, inf, inf, -3e38, nan])  # the first is nobody's
    _, updated = token_recover_with_importance(**inputs, trade_off=trade_off)
    want = inputs["importance"].clone()
    score = inputs["score"][:, 1:] if keep == 8 else inputs["score"][:, 1:-1]
    seen = score.shape[1]
    want[:, :seen] = want[:, :seen].lerp(score, trade_off)
    torch.testing.assert_close(updated, want, equal_nan=True)
    assert torch.equal(updated[:, seen:], inputs["importance"][:, seen:])


@pytest.mark.parametrize(
    "arranged",
    [
        lambda t: draw(*reversed(t.shape)).to(t).t().copy_(t),
        lambda t: draw(t.shape[0], t.shape[1] + 3).to(t)[:, 2:-1].copy_(t),
        lambda t: t[:1].expand(t.shape),
        lambda t: torch.complex(t, -t).conj().imag,
    ],
    ids=["transposed", "part", "expanded", "negated"],
)
def test_any_layout(arranged, backend) -> None:
    inputs = inputs_of((2, 9, 5), 4, 1)
    inputs |= {name: arranged(inputs[name]) for name in ("importance", "score")}
    hold(inputs)


def test_gradients_in_any_layout(backend) -> None:
    inputs = inputs_of((2, 9, 5), 4, 1)

    def updated(operator: Callable, **inputs: Tensor) -> Tensor:
        return operator(**inputs, trade_off=0.3)[1]

    numbers = {name: inputs.pop(name) for name in ("importance", "score")}
    for upstream in (
        lambda _: draw(9, 2).t(),
        lambda _: draw(2, 12)[:, 2:-1],
        lambda y: draw(1).expand(y.shape),
    ):
        check(
            partial(updated, token_recover_with_importance, **inputs),
            partial(updated, reference.token_recover_with_importance, **inputs),
            numbers,
            reduction=1,
            upstream=upstream,
        )


@pytest.mark.parametrize("shape", [(0, 9, 5), (2, 0, 5), (2, 9, 0)], ids=str)
def test_nothing_of_something(shape, backend) -> None:
    keep = min(4, shape[1])
    inputs = inputs_of((2, *shape[1:]), keep, 1)
    inputs = {name: t[: shape[0]] for name, t in inputs.items()}
    numbers = [inputs[name].requires_grad_() for name in ("importance", "score")]
    y, updated = token_recover_with_importance(**inputs)
    want = reference.token_recover_with_importance(**inputs)
    assert torch.equal(y, want[0])
    torch.testing.assert_close(updated, want[1])
    dupdated = draw(*updated.shape)
    for got, exact in zip(
        torch.autograd.grad(updated, numbers, dupdated),
        torch.autograd.grad(want[1], numbers, dupdated),
        strict=True,
    ):
        torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("keep", [3, 6])
def test_gradcheck(keep, backend) -> None:
    inputs = inputs_of((2, 7, 3), keep, 1, torch.float64)
    index = inputs.pop("index")
    leaves = [t.requires_grad_() for t in inputs.values()]

    def both(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        return token_recover_with_importance(x, index, *others, trade_off=0.3)

    assert gradcheck(both, leaves, nondet_tol=0.0)


def test_any_choice_of_gradients(backend) -> None:
    inputs = inputs_of((2, 7, 3), 3, 1)
    index = inputs.pop("index")

    def both(**inputs: Tensor) -> Tensor:
        return torch.cat(
            [t.flatten(1) for t in token_recover_with_importance(index=index, **inputs)], 1
        )

    dy = draw(2, 7 * 3 + 7)
    everything = evaluate(both, inputs, upstream=lambda _: dy)
    for count in (1, 4):
        for needs in combinations(inputs, count):
            some = evaluate(both, inputs, upstream=lambda _: dy, needs=needs)
            assert some.keys() == {"output", *needs}
            assert all(torch.equal(some[name], everything[name]) for name in some)


def test_what_nothing_depends_on_has_no_gradient(backend) -> None:
    """As of a model's last block, whose importance nobody asks for."""
    inputs = inputs_of((2, 7, 3), 3, 1)
    leaves = {k: t.requires_grad_(k != "index") for k, t in inputs.items()}
    y, _ = token_recover_with_importance(**leaves)
    y.sum().backward()
    assert leaves["importance"].grad is leaves["score"].grad is None
    assert all(leaves[name].grad is not None for name in ("x", "kept", "delta"))


def test_importance_stays_wide_under_autocast(backend) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        inputs = inputs_of((2, 7, 3), 3, 1, dtype)
        with torch.autocast("cpu", torch.bfloat16):
            y, updated = token_recover_with_importance(**inputs)
        want = token_recover_with_importance(**inputs)
        assert (y.dtype, updated.dtype) == (dtype, torch.float32)
        assert torch.equal(y, want[0])
        assert torch.equal(updated, want[1])


@pytest.mark.skipif(not INTERPRETED, reason="tiles are Triton's")
@pytest.mark.parametrize("tokens", [4, 64])
def test_other_tile_sizes(tokens, backend) -> None:
    """Several blocks of tokens, of which the first gives zeros to what nobody's score is."""
    kernels = importlib.import_module("uniformer_kernels.triton.token_recover")
    with contextlib.ExitStack() as stack:
        for tunable in (kernels.RECOVER, kernels.RECOVER_BACKWARD):
            stack.enter_context(tunable.trying(BLOCK_N=tokens, BLOCK_C=4))
        for keep in (9, 20):
            hold(inputs_of((2, 21, 10), keep, 5))


def test_same_bits_for_any_number_of_threads(backend) -> None:
    inputs = inputs_of((3, 300, 9), 150, 1)
    upstream = draw(3, 300)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        numbers = [inputs[name].requires_grad_() for name in ("importance", "score")]
        _, updated = token_recover_with_importance(**inputs)
        results.append([updated, *torch.autograd.grad(updated, numbers, upstream)])
    assert all(map(torch.equal, *results))


# Tracing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype) -> None:
    ops, inputs = torch.ops.uniformer_kernels, inputs_of((2, 9, 5), 4, 1, dtype)
    torch.library.opcheck(ops.token_recover_with_importance.default, (*inputs.values(), 0.3))
    given = inputs["x"], inputs["importance"], inputs["index"], 1, 0.3
    torch.library.opcheck(ops.token_recover_with_importance_backward.default, given)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic: bool) -> None:
    def both(index: Tensor, **inputs: Tensor) -> Tensor:
        y, updated = token_recover_with_importance(index=index, **inputs, trade_off=0.25)
        return torch.cat([y.flatten(1), updated], 1)

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 3) if dynamic else (2,):
        inputs = inputs_of((batch, 7, 4), 3, 1)
        index, dy = inputs.pop("index"), draw(batch, 7 * 5)
        got = evaluate(partial(compiled, index), inputs, upstream=lambda _, dy=dy: dy)
        want = evaluate(partial(both, index), inputs, upstream=lambda _, dy=dy: dy)
        for name in want:
            torch.testing.assert_close(got[name], want[name])


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kept": torch.zeros(2, 4, 5)}, ValueError, r"kept: expected \[2, 3, 5\], got"),
        ({"index": torch.zeros(2, 3)}, TypeError, "index: expected torch.int64, got torch.float"),
        ({"importance": torch.zeros(2, 8)}, ValueError, r"importance: expected \[2, 9\], got"),
        ({"importance": None}, TypeError, "importance: expected a tensor, got NoneType"),
        ({"score": None}, TypeError, "score: expected a tensor, got NoneType"),
        (
            {"score": torch.zeros(2, 3)},
            ValueError,
            r"score: expected \[2, P \+ 3 \+ 1\], got \[2, 3",
        ),
        (
            {"score": torch.zeros(1, 5)},
            ValueError,
            r"score: expected \[2, P \+ K \+ 1\], got \[1, 5",
        ),
        (
            {"score": torch.zeros(2, 5).half()},
            TypeError,
            "score: expected torch.float32 for x in torch.float32, got torch.float16",
        ),
        (
            {"importance": torch.zeros(2, 9).double()},
            TypeError,
            "importance: expected torch.float32 for x in torch.float32, got torch.float64",
        ),
        (
            {"importance": torch.zeros(2, 9, device="meta")},
            ValueError,
            "importance: expected on cpu like x, got meta",
        ),
        ({"score": torch.zeros(2, 5, device="meta")}, ValueError, "score: expected on cpu like x"),
    ],
)
def test_what_does_not_fit(changes, error, message) -> None:
    call = {
        "x": torch.zeros(2, 9, 5),
        "index": torch.tensor([[0, 1, 2]] * 2),
        "kept": torch.zeros(2, 3, 5),
        "delta": torch.zeros(2, 1, 5),
        "importance": torch.zeros(2, 9),
        "score": torch.zeros(2, 5),
    }
    with pytest.raises(error, match=f"{NAME}: {message}"):
        token_recover_with_importance(**call | changes)


def test_one_without_the_other() -> None:
    inputs = inputs_of((2, 9, 5), 4, 1)
    for name in ("importance", "score"):
        with pytest.raises(TypeError, match=f"missing 1 required positional argument: '{name}'"):
            token_recover_with_importance(**{k: t for k, t in inputs.items() if k != name})


def test_the_kernels_themselves_read_no_foreign_memory() -> None:
    """What the public function refuses with more words."""
    inputs = inputs_of((2, 9, 5), 4, 1)
    kernel = torch.ops.uniformer_kernels.token_recover_with_importance
    for name, wrong, message in (
        ("importance", torch.zeros(2, 8), r"importance \[B, N\]"),
        ("score", torch.zeros(2, 4), r"score \[B, P \+ K \+ 1\]"),
        ("score", torch.zeros(6, 2).t(), r"score \[B, P \+ K \+ 1\], adjacent"),
        ("score", torch.zeros(2, 6).double(), r"score \[B, P \+ K \+ 1\], adjacent"),
        ("index", torch.tensor([[0, 1, 2, 9]] * 2), "index ascending from 0 to N - 1"),
    ):
        with pytest.raises(RuntimeError, match=f"expected {message}"):
            kernel(*(inputs | {name: wrong}).values(), 0.5)


def test_differentiable_once() -> None:
    importance = importance_of(2, 9).requires_grad_()
    inputs = inputs_of((2, 9, 5), 4, 1) | {"importance": importance}

    def twice() -> Tensor:
        _, updated = token_recover_with_importance(**inputs)
        (first,) = torch.autograd.grad(updated.square().sum(), importance, create_graph=True)
        return torch.autograd.grad(first.sum(), importance)[0]

    with use_backend("cpu"), pytest.raises(RuntimeError, match="differentiable once"):
        twice()
    with use_backend("reference"):
        assert twice().any()
