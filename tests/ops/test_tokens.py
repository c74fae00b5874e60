"""Shrinking and recovering: which tokens are kept, how the others are merged, and back again."""

from __future__ import annotations

import contextlib
import importlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from tests.contract import DTYPES, check, draw, evaluate
from uniformer_kernels import reference, token_recover, token_shrink, use_backend
from uniformer_kernels.triton import INTERPRETED

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def importance_of(B: int, N: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(B, N, dtype=torch.float64).to(wide(dtype))


def index_of(B: int, N: int, K: int) -> Tensor:
    return torch.stack([torch.randperm(N)[:K].sort().values for _ in range(B)])


def hold_shrink(x: Tensor, importance: Tensor, keep: int, prefix: Tensor | None = None) -> None:
    """Check one call against the contract, and its index."""

    def tokens(operator, **inputs: Tensor) -> Tensor:
        return operator(keep=keep, **inputs)[0]

    inputs = {"x": x, "importance": importance}
    inputs |= {} if prefix is None else {"prefix": prefix}
    check(
        partial(tokens, token_shrink),
        partial(tokens, reference.token_shrink),
        inputs,
        reduction=max(x.shape[1:]),
    )
    index = token_shrink(x, importance, keep, prefix=prefix)[1]
    assert index.dtype == torch.int64
    assert torch.equal(index, reference.token_shrink(x, importance, keep)[1])


def hold_recover(x: Tensor, index: Tensor, kept: Tensor, delta: Tensor) -> None:
    check(
        partial(token_recover, index=index),
        partial(reference.token_recover, index=index),
        {"x": x, "kept": kept, "delta": delta},
        reduction=x.shape[1],
    )


@every_dtype
@pytest.mark.parametrize(
    ("shape", "keep", "prefixed"),
    [
        ((2, 9, 12), 4, 1),
        ((1, 1, 1), 0, 0),
        ((2, 2, 3), 1, 2),
        ((3, 30, 17), 29, 0),
        ((1, 42, 28), 0, 1),
        ((2, 100, 56), 50, 1),
        ((1, 180, 75), 20, 3),
        ((2, 5, 0), 2, 1),
    ],
)
def test_values_and_gradients(shape, keep, prefixed, dtype, backend) -> None:
    B, N, C = shape
    x = draw(*shape, dtype=dtype)
    prefix = draw(B, prefixed, C, dtype=dtype) if prefixed else None
    hold_shrink(x, importance_of(B, N, dtype), keep, prefix)
    kept, delta = draw(B, keep, C, dtype=dtype), draw(B, 1, C, dtype=dtype)
    hold_recover(x, index_of(B, N, keep), kept, delta)


@every_dtype
def test_equals_the_definition(dtype, backend) -> None:
    """Token by token, so that the operators cannot be wrong like their reference."""
    B, N, C, keep = 2, 11, 5, 4
    x, importance = draw(B, N, C, dtype=dtype), importance_of(B, N, dtype)
    tokens, index = token_shrink(x, importance, keep)
    kept, delta = draw(B, keep, C, dtype=dtype), draw(B, 1, C, dtype=dtype)
    y = token_recover(x, index, kept, delta)
    tolerance = 4 * torch.finfo(dtype).eps
    for b in range(B):
        ranked = sorted(range(N), key=lambda n: -importance[b, n].item())
        first, others = sorted(ranked[:keep]), ranked[keep:]
        assert index[b].tolist() == first
        assert torch.equal(tokens[b, :keep], x[b, first])
        total = sum(importance[b, n].item() for n in others)
        mean = sum(importance[b, n].item() / total * x[b, n].double() for n in others)
        torch.testing.assert_close(tokens[b, keep].double(), mean, rtol=tolerance, atol=tolerance)
        for n in range(N):
            want = kept[b, first.index(n)] if n in first else x[b, n] + delta[b, 0]
            assert torch.equal(y[b, n], want)


@pytest.mark.parametrize(
    ("dtype", "N"), [(torch.bfloat16, 800), (torch.float16, 2304), (torch.float32, 2304)], ids=str
)
def test_positions_that_the_dtype_cannot_count(dtype, N, backend) -> None:
    """bfloat16 counts to 256, float16 to 2048: positions must never be such numbers."""
    x, importance = draw(1, N, 3, dtype=dtype), importance_of(1, N)
    tokens, index = token_shrink(x, importance, N // 2)
    want = importance.topk(N // 2).indices.sort().values
    assert torch.equal(index, want)
    back = token_recover(x, index, tokens[:, :-1], torch.zeros_like(x[:, :1]))
    assert torch.equal(back, x)


# Selection ---------------------------------------------------------------------------------------


def kept_of(importance: list[float], keep: int) -> list[int]:
    row = torch.tensor([importance], dtype=torch.float32)
    _, index = token_shrink(draw(1, len(importance), 2), row, keep)
    return index[0].tolist()


def test_ties_go_to_the_lower_index(backend) -> None:
    assert kept_of([1, 1, 1, 1, 1], 2) == [0, 1]
    assert kept_of([0, 2, 1, 2, 1, 1, 3], 4) == [1, 2, 3, 6]
    assert kept_of([0.0, -0.0, 0.0, 1.0], 2) == [0, 3]
    assert kept_of([-0.0, 0.0, -0.0], 1) == [0]
    assert kept_of([1e-45, 0.0, 3e-45], 1) == [2]


@every_dtype
def test_a_constant_importance(dtype, backend) -> None:
    x = draw(2, 300, 4, dtype=dtype)
    _, index = token_shrink(x, torch.full((2, 300), 0.125, dtype=wide(dtype)), 150)
    assert torch.equal(index, torch.arange(150).expand(2, 150))


def test_extremes_order_as_in_a_sort(backend) -> None:
    nan, inf = float("nan"), float("inf")
    assert kept_of([1, nan, 3, inf], 1) == [1]
    assert kept_of([1, nan, 3, inf], 2) == [1, 3]
    assert kept_of([-inf, -2, -1, inf], 2) == [2, 3]


@every_dtype
def test_a_set_without_importance_is_merged_evenly(dtype, backend) -> None:
    """0 / 0 otherwise. Nothing can be learned about it, so its gradient is 0."""
    x = draw(2, 8, 6, dtype=dtype).requires_grad_()
    importance = torch.zeros(2, 8, dtype=wide(dtype))
    importance[:, [1, 6]] = 1.0
    importance.requires_grad_()
    tokens, index = token_shrink(x, importance, 2)
    assert index.tolist() == [[1, 6]] * 2
    want = x[:, [0, 2, 3, 4, 5, 7]].double().mean(1).to(dtype)
    torch.testing.assert_close(tokens[:, 2], want)
    dx, dimportance = torch.autograd.grad(tokens.square().sum(), (x, importance))
    assert dx.isfinite().all()
    assert not dimportance.any()


def test_tiny_importances_are_still_weights(backend) -> None:
    importance = torch.tensor([[3e-38, 1e-38, 1.0]])
    x = torch.tensor([[[4.0], [8.0], [1.0]]])
    tokens, _ = token_shrink(x, importance, 1)
    torch.testing.assert_close(tokens, torch.tensor([[[1.0], [5.0]]]))


# Gradients ---------------------------------------------------------------------------------------


def test_gradcheck(backend) -> None:
    x, prefix = draw(2, 7, 3, dtype=torch.float64), draw(2, 1, 3, dtype=torch.float64)
    importance = importance_of(2, 7, torch.float64)
    leaves = [t.requires_grad_() for t in (x, importance, prefix)]

    def shrink(x: Tensor, importance: Tensor, prefix: Tensor) -> Tensor:
        return token_shrink(x, importance, 3, prefix=prefix)[0]

    assert gradcheck(shrink, leaves, nondet_tol=0.0)

    index = index_of(2, 7, 3)
    kept, delta = (draw(2, n, 3, dtype=torch.float64).requires_grad_() for n in (3, 1))
    assert gradcheck(partial(token_recover, x, index), (kept, delta), nondet_tol=0.0)
    assert gradcheck(lambda x: token_recover(x, index, kept, delta), (x,), nondet_tol=0.0)


def test_an_index_has_no_gradient(backend) -> None:
    x, importance = draw(2, 7, 3).requires_grad_(), importance_of(2, 7).requires_grad_()
    _, index = token_shrink(x, importance, 3)
    assert not index.requires_grad


def test_any_choice_of_gradients(backend) -> None:
    inputs = {"x": draw(2, 7, 3), "importance": importance_of(2, 7), "prefix": draw(2, 1, 3)}
    dy = draw(2, 5, 3)

    def shrink(**inputs: Tensor) -> Tensor:
        return token_shrink(keep=3, **inputs)[0]

    everything = evaluate(shrink, inputs, upstream=lambda _: dy)
    for name in inputs:
        some = evaluate(shrink, inputs, upstream=lambda _: dy, needs=[name])
        assert some.keys() == {"output", name}
        assert torch.equal(some[name], everything[name])


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_gradient_in_any_layout(layout, backend) -> None:
    def upstream(y: Tensor) -> Tensor:
        return {
            "transposed": lambda: draw(*reversed(y.shape)).permute(2, 1, 0),
            "sliced": lambda: draw(*y.shape[:2], y.shape[2] + 3)[..., 2:-1],
            "expanded": lambda: draw(1).expand(y.shape),
        }[layout]()

    def shrink(operator, **inputs: Tensor) -> Tensor:
        return operator(keep=3, **inputs)[0]

    x, index = draw(2, 9, 5), index_of(2, 9, 3)
    check(
        partial(shrink, token_shrink),
        partial(shrink, reference.token_shrink),
        {"x": x, "importance": importance_of(2, 9), "prefix": draw(2, 1, 5)},
        reduction=81,
        upstream=upstream,
    )
    check(
        partial(token_recover, index=index),
        partial(reference.token_recover, index=index),
        {"x": x, "kept": draw(2, 3, 5), "delta": draw(2, 1, 5)},
        reduction=81,
        upstream=upstream,
    )


@pytest.mark.skipif(not INTERPRETED, reason="tiles are Triton's")
@pytest.mark.parametrize("tokens", [4, 64])
def test_other_tile_sizes(tokens, backend) -> None:
    """Several blocks of tokens and of channels, and one that is larger than there are."""
    shrink, recover = (
        importlib.import_module(f"uniformer_kernels.triton.token_{name}")
        for name in ("shrink", "recover")
    )
    B, N, C, keep = 2, 21, 10, 9
    with contextlib.ExitStack() as stack:
        for tunable in (
            shrink.SHRINK,
            shrink.SHRINK_BACKWARD,
            recover.RECOVER,
            recover.RECOVER_BACKWARD,
        ):
            stack.enter_context(tunable.trying(BLOCK_N=tokens, BLOCK_C=4))
        hold_shrink(draw(B, N, C), importance_of(B, N), keep, draw(B, 5, C))
        kept, delta = draw(B, keep, C), draw(B, 1, C)
        hold_recover(draw(B, N, C), index_of(B, N, keep), kept, delta)


# Layouts, batches, threads -----------------------------------------------------------------------


@given(
    B=st.integers(0, 3),
    N=st.integers(1, 70),
    C=st.integers(1, 40),
    fraction=st.floats(0, 1, exclude_max=True),
    levels=st.sampled_from([1, 2, 5, 1000]),
    layout=st.sampled_from(["plain", "tokens first", "channels first", "part", "every other"]),
    dtype=st.sampled_from([torch.float32, torch.float16] if INTERPRETED else DTYPES),
    seed=st.integers(0, 2**32),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_and_strides(B, N, C, fraction, levels, layout, dtype, seed, backend) -> None:
    torch.manual_seed(seed)
    keep = int(N * fraction)

    def arranged(*shape: int) -> Tensor:
        b, n, c = shape
        return {
            "plain": lambda: draw(b, n, c, dtype=dtype),
            "tokens first": lambda: draw(n, b, c, dtype=dtype).transpose(0, 1),
            "channels first": lambda: draw(b, c, n, dtype=dtype).transpose(1, 2),
            "part": lambda: draw(b, n + 2, c + 3, dtype=dtype)[:, 1:-1, 2:-1],
            "every other": lambda: draw(b, n, 2 * c, dtype=dtype)[..., ::2],
        }[layout]()

    importance = (torch.randint(levels, (N, B)).t() / levels).to(wide(dtype))
    x = arranged(B, N, C)
    if levels < 1000:  # mere ties: a set of zeros has no gradient to compare
        got = token_shrink(x, importance, keep)
        want = reference.token_shrink(x.double(), importance.double(), keep)
        assert torch.equal(got[1], want[1])
        atol = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(got[0].double(), want[0], rtol=atol, atol=atol)
    else:
        hold_shrink(x, importance + 1, keep, arranged(B, 1, C))
    hold_recover(x, _indices(B, N, keep), arranged(B, keep, C), arranged(B, 1, C))


def _indices(B: int, N: int, K: int) -> Tensor:
    return index_of(B, N, K) if B else torch.empty(0, K, dtype=torch.int64)


def test_the_kept_part_of_a_sequence_is_no_copy(backend) -> None:
    """As the block passes it: a slice, and a prefix that all samples share."""
    x, prefix = draw(2, 9, 5), draw(1, 1, 5).expand(2, -1, -1)
    hold_shrink(x, importance_of(2, 9), 4, prefix)
    tokens, index = token_shrink(x, importance_of(2, 9), 4, prefix=prefix)
    hold_recover(x, index, tokens[:, 1:-1], tokens[:, -1:])
    assert token_recover(x, index, tokens[:, 1:-1], tokens[:, -1:]).is_contiguous()


def test_lazily_negated_input(backend) -> None:
    x, importance = draw(2, 9, 5), importance_of(2, 9)
    negated = torch.complex(x, -x).conj().imag
    assert negated.is_neg()
    tokens, index = token_shrink(negated, importance, 4)
    assert torch.equal(tokens, token_shrink(x, importance, 4)[0])
    kept, delta = tokens[:, :-1], tokens[:, -1:]
    assert torch.equal(
        token_recover(negated, index, kept, delta), token_recover(x, index, kept, delta)
    )


def _round(x: Tensor, importance: Tensor, dy: Tensor) -> list[bytes]:
    leaves = [x.clone().requires_grad_(), importance.clone().requires_grad_()]
    tokens, index = token_shrink(*leaves, x.shape[1] // 2)
    y = token_recover(leaves[0], index, tokens[:, :-1], tokens[:, -1:])
    results = [index, y.detach(), *torch.autograd.grad(y, leaves, dy)]
    return [t.numpy().tobytes() for t in results]


def test_same_bits_for_any_number_of_threads(backend) -> None:
    inputs = draw(2, 300, 33), importance_of(2, 300), draw(2, 300, 33)
    results = []
    for threads in (1, 2) if INTERPRETED else (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(_round(*inputs))
    if backend == "reference":  # PyTorch's own sums may follow the threads
        results = results[1::2]
    assert all(result == results[0] for result in results)


def test_calls_from_two_threads() -> None:
    jobs = [(draw(2, 60, 8), importance_of(2, 60), draw(2, 60, 8)) for _ in range(16)]
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(lambda job: _round(*job), jobs))
    assert at_once == [_round(*job) for job in jobs]


# Tracing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype) -> None:
    ops = torch.ops.uniformer_kernels
    x, importance, prefix = draw(2, 9, 5, dtype=dtype), importance_of(2, 9, dtype), None
    for prefix in (None, draw(2, 1, 5, dtype=dtype)):
        torch.library.opcheck(ops.token_shrink.default, (x, importance, 4, prefix))
    tokens, index = ops.token_shrink(x, importance, 4, prefix)
    torch.library.opcheck(ops.token_shrink_backward.default, (tokens, x, importance, index))
    kept, delta = tokens[:, 1:-1], tokens[:, -1:]
    torch.library.opcheck(ops.token_recover.default, (x, index, kept, delta))
    torch.library.opcheck(ops.token_recover_backward.default, (x, index))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic: bool) -> None:
    def both(x: Tensor, importance: Tensor) -> Tensor:
        tokens, index = token_shrink(x, importance, 3)
        return token_recover(x, index, tokens[:, :-1], tokens[:, -1:])

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 3, 5) if dynamic else (2,):
        inputs = {"x": draw(batch, 7, 4), "importance": importance_of(batch, 7)}
        dy = draw(batch, 7, 4)
        got = evaluate(compiled, inputs, upstream=lambda _, dy=dy: dy)
        want = evaluate(both, inputs, upstream=lambda _, dy=dy: dy)
        for name in want:
            torch.testing.assert_close(got[name], want[name])


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(2, 9)}, ValueError, r"x: expected \[B, N, C\], got \[2, 9\]"),
        ({"x": torch.zeros(2, 9, 5).long()}, TypeError, "x: expected one of torch.float32"),
        ({"x": [1.0]}, TypeError, "x: expected a tensor, got list"),
        ({"importance": torch.zeros(2, 8)}, ValueError, r"importance: expected \[2, 9\], got"),
        ({"importance": None}, TypeError, "importance: expected a tensor, got NoneType"),
        (
            {"importance": torch.zeros(2, 9).half()},
            TypeError,
            "importance: expected torch.float32 for x in torch.float32, got torch.float16",
        ),
        (
            {"x": torch.zeros(2, 9, 5).double()},
            TypeError,
            "importance: expected torch.float64 for x in torch.float64, got torch.float32",
        ),
        (
            {"importance": torch.zeros(2, 9, device="meta")},
            ValueError,
            "importance: expected on cpu like x, got meta",
        ),
        ({"keep": 9}, ValueError, r"keep: expected 0 <= keep < N, got 9 with x \[2, 9, 5\]"),
        ({"keep": -1}, ValueError, r"keep: expected 0 <= keep < N, got -1"),
        ({"prefix": torch.zeros(2, 1, 4)}, ValueError, r"prefix: expected \[2, P, 5\], got"),
        ({"prefix": torch.zeros(2, 1, 5).half()}, TypeError, "prefix: expected torch.float32"),
    ],
)
def test_what_cannot_be_shrunk(changes, error, message) -> None:
    call = {"x": torch.zeros(2, 9, 5), "importance": torch.zeros(2, 9), "keep": 4}
    with pytest.raises(error, match=f"token_shrink: {message}"):
        token_shrink(**call | changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(9, 5)}, ValueError, r"x: expected \[B, N, C\], got \[9, 5\]"),
        ({"index": torch.zeros(1, 3).long()}, ValueError, r"index: expected \[2, K\], got"),
        ({"index": torch.zeros(2, 3)}, TypeError, "index: expected torch.int64, got torch.float"),
        ({"kept": torch.zeros(2, 4, 5)}, ValueError, r"kept: expected \[2, 3, 5\], got"),
        ({"delta": torch.zeros(2, 3, 5)}, ValueError, r"delta: expected \[2, 1, 5\], got"),
        ({"kept": torch.zeros(2, 3, 5).half()}, TypeError, "kept: expected torch.float32"),
        ({"index": torch.zeros(2, 3, device="meta").long()}, ValueError, "index: expected on cpu"),
    ],
)
def test_what_cannot_be_recovered(changes, error, message) -> None:
    call = {
        "x": torch.zeros(2, 9, 5),
        "index": torch.tensor([[0, 1, 2]] * 2),
        "kept": torch.zeros(2, 3, 5),
        "delta": torch.zeros(2, 1, 5),
    }
    with pytest.raises(error, match=f"token_recover: {message}"):
        token_recover(**call | changes)


@pytest.mark.parametrize("index", [[0, 2, 1], [0, 1, 9], [-1, 0, 1], [3, 3, 4]], ids=str)
def test_an_index_outside_reads_no_foreign_memory(index) -> None:
    x = draw(1, 9, 5)
    with use_backend("cpu"), pytest.raises(RuntimeError, match="index ascending from 0 to N - 1"):
        token_recover(x, torch.tensor([index]), x[:, :3], x[:, :1])
