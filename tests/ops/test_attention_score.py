"""The score rows of joint attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tests.contract import DTYPES, check, draw
from tests.ops.tiles import attention_tiles
from uniformer_kernels import joint_attention, joint_attention_with_score, reference
from uniformer_kernels.kernels import kernels


def hold(shape, num_heads, queries, dtype=torch.float32) -> None:
    """Output and score together: the gradients of both reach ``qkv``."""

    def both(operator):
        def run(qkv: Tensor) -> Tensor:
            out, score = operator(qkv, num_heads, queries=queries)
            return torch.cat([out.to(score.dtype).flatten(1), score], 1)

        return run

    check(
        both(joint_attention_with_score),
        both(reference.joint_attention_with_score),
        {"qkv": draw(*shape, dtype=dtype)},
        reduction=max(shape[1:]),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", [1, 3, None])
def test_values_and_gradients(queries, dtype, backend) -> None:
    hold((2, 9, 48), 2, queries, dtype)


@pytest.mark.parametrize("queries", [1, 20, 32, None])
def test_in_several_blocks(queries, backend) -> None:
    """Some of the queries' blocks with a score, one with some, some without."""
    with attention_tiles("joint_attention", backend, BLOCK_M=16, BLOCK_N=32):
        hold((1, 71, 48), 2, queries)


def test_no_tokens_at_all(backend) -> None:
    qkv = draw(2, 0, 48).requires_grad_()
    out, score = joint_attention_with_score(qkv, 2, queries=None)
    (out.sum() + score.sum()).backward()
    assert out.shape == (2, 0, 16)
    assert score.shape == (2, 0)
    assert qkv.grad.shape == qkv.shape


def test_opcheck(backend) -> None:
    if backend == "reference":
        pytest.skip("no operator of its own")
    ops, qkv = kernels(backend), draw(2, 9, 96)
    arguments = (2, 1 if backend == "cpu" else None, 0.25)  # the CPU's kernels know one query
    torch.library.opcheck(ops.joint_attention_with_score.default, (qkv, *arguments))
    out, score, lse = ops.joint_attention_with_score(qkv, *arguments)
    given = (draw(*out.shape), draw(*score.shape), qkv, out, lse, *arguments)
    torch.library.opcheck(ops.joint_attention_with_score_backward.default, given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.1])
def test_equals_the_definition(scale, dtype, backend) -> None:
    qkv = draw(2, 7, 3 * 3 * 4, dtype=dtype)
    out, score = joint_attention_with_score(qkv, 3, scale=scale)
    eps = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, joint_attention(qkv, 3, scale=scale), rtol=eps, atol=eps)
    assert score.dtype == torch.promote_types(dtype, torch.float32)
    want = 0
    for h in range(3):
        q, k = (qkv[..., s + 4 * h : s + 4 * h + 4].double() for s in (0, 12))
        rows = (q[:, :1] @ k.mT * (0.5 if scale is None else scale)).softmax(-1)
        want = want + rows[:, 0] / 3
    torch.testing.assert_close(score.double(), want, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(score.sum(1), torch.ones_like(score[:, 0]))


def test_scores_stay_wide_under_autocast(backend) -> None:
    qkv = draw(2, 9, 48)
    with torch.autocast("cpu", torch.bfloat16):
        out, score = joint_attention_with_score(qkv, 2)
    assert out.dtype == torch.bfloat16
    assert score.dtype == torch.float32
    assert torch.equal(score, joint_attention_with_score(qkv.bfloat16(), 2)[1])


def test_gradcheck(backend) -> None:
    qkv = draw(2, 5, 24, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda qkv: joint_attention_with_score(qkv, 2), (qkv,))


def test_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()
    compiled = torch.compile(joint_attention_with_score, fullgraph=True, backend="aot_eager")
    qkv = draw(2, 9, 48)
    for got, want in zip(compiled(qkv, 2), joint_attention_with_score(qkv, 2), strict=True):
        torch.testing.assert_close(got, want)


def test_what_does_not_fit() -> None:
    name = "joint_attention_with_score"
    with pytest.raises(ValueError, match=rf"{name}: qkv: expected \[B, N, 3C\], got \[9, 48\]"):
        joint_attention_with_score(draw(9, 48), 2)
    with pytest.raises(ValueError, match=f"{name}: num_heads: expected a divisor"):
        joint_attention_with_score(draw(1, 9, 48), 5)
    for queries in (0, 10):
        with pytest.raises(ValueError, match=f"{name}: queries: expected 1 <= .*got {queries}"):
            joint_attention_with_score(draw(1, 9, 48), 2, queries=queries)


def test_the_same_for_any_number_of_threads() -> None:
    qkv, dscore, results = draw(3, 50, 3 * 5 * 12), draw(3, 50), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaf = qkv.clone().requires_grad_()
        out, score = joint_attention_with_score(leaf, 5)
        results.append([score, *torch.autograd.grad([out.sum(), score], leaf, [None, dscore])])
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_refuses_what_it_cannot_compute() -> None:
    forward = torch.ops.uniformer_kernels.joint_attention_with_score
    backward = torch.ops.uniformer_kernels.joint_attention_with_score_backward
    qkv = draw(2, 9, 48)
    out, score, lse = forward(qkv, 2, 1, 0.25)
    for queries in (None, 2):
        with pytest.raises(RuntimeError, match="one query"):
            forward(qkv, 2, queries, 0.25)
    with pytest.raises(RuntimeError, match=r"dscore \[B, N\]"):
        backward(out, score.double(), qkv, out, lse, 2, 1, 0.25)


def test_the_cpus_gradient_refuses_no_heads() -> None:
    """As an error: channels are divided by them, and a process would end there."""
    qkv, out, score = draw(1, 3, 12), draw(1, 3, 4), draw(1, 3)
    backward = kernels("cpu").joint_attention_with_score_backward
    with pytest.raises(RuntimeError, match="at least one head"):
        backward(out, score, qkv, out, draw(1, 1, 3), 0, 1, 1.0)
