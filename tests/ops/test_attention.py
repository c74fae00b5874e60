"""Joint attention: packing, scale, extreme scores, and what does not fit."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract import DTYPES, check, draw, evaluate
from tests.ops.tiles import attention_tiles
from uniformer_kernels import BackendError, joint_attention, reference
from uniformer_kernels.kernels import kernels
from uniformer_kernels.triton import INTERPRETED


def hold(shape, num_heads, dtype=torch.float32, scale=None, qkv=None) -> None:
    """Check one call against the contract; ``shape`` is that of the output."""
    B, N, C = shape
    check(
        partial(joint_attention, num_heads=num_heads, scale=scale),
        partial(reference.joint_attention, num_heads=num_heads, scale=scale),
        {"qkv": draw(B, N, 3 * C, dtype=dtype) if qkv is None else qkv},
        reduction=max(N, C // num_heads),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "num_heads"),
    [
        ((1, 1, 1), 1),
        ((2, 1, 64), 2),
        ((1, 7, 3), 3),  # one-element heads
        ((2, 17, 56), 2),  # 28: no vector's multiple
        ((1, 49, 128), 2),
        ((3, 50, 320), 5),
        ((1, 197, 64), 1),
        ((1, 7, 128), 1),
        ((1, 333, 8), 1),
        ((1, 193, 66), 2),  # a query, a key and a channel more than whole tiles
    ],
    ids=str,
)
def test_values_and_gradients(shape, num_heads, dtype, backend) -> None:
    hold(shape, num_heads, dtype)


def test_large_heads(backend) -> None:
    if backend == "triton":
        with pytest.raises(BackendError, match="head_dim is 130, expected at most 128"):
            hold((1, 7, 130), 1)
    else:
        hold((1, 7, 130), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("m", "n"), [(16, 64), (64, 16)])
def test_in_several_blocks(m, n, dtype, backend) -> None:
    """Whole ones and a rest, of queries and of keys; the scale's sign matters to maxima."""
    with attention_tiles("joint_attention", backend, BLOCK_M=m, BLOCK_N=n):
        hold((1, 71, 24), 2, dtype)
        hold((1, 64, 8), 1, dtype, scale=-0.5)
        hold((1, 71, 8), 1, dtype, scale=0.0)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.37, 1, -0.5, 5.0])
def test_scale(scale, backend) -> None:
    """Zero is a scale like any other: the mean of all values."""
    hold((2, 9, 32), 2, scale=scale)
    if scale == 0:
        qkv = draw(2, 9, 96)
        want = qkv[..., 64:].mean(1, keepdim=True).expand(2, 9, 32)
        torch.testing.assert_close(joint_attention(qkv, 2, scale=0.0), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_definition(dtype, backend) -> None:
    """Head by head from the packed tensor, so that the packing cannot be wrong in both."""
    B, N, heads, d = 2, 5, 3, 4
    qkv = draw(B, N, 3 * heads * d, dtype=dtype)
    want = torch.empty(B, N, heads * d, dtype=torch.float64)
    for h in range(heads):
        q, k, v = (
            qkv[..., start + h * d : start + (h + 1) * d].double()
            for start in (0, heads * d, 2 * heads * d)
        )
        want[..., h * d : (h + 1) * d] = F.softmax(q @ k.transpose(1, 2) / d**0.5, -1) @ v
    tolerance = 20 * torch.finfo(dtype).eps
    got = joint_attention(qkv, heads).double()
    torch.testing.assert_close(got, want, rtol=tolerance, atol=max(tolerance, 1e-5))


def test_large_scores_do_not_overflow(backend) -> None:
    """A softmax without its maximum taken off would be NaN."""
    qkv = draw(1, 11, 48) * 60
    y = joint_attention(qkv, 2)
    assert y.isfinite().all()
    want = reference.joint_attention(qkv.double(), 2)
    torch.testing.assert_close(y.double(), want, rtol=1e-3, atol=1e-2)


def test_output_is_contiguous(backend) -> None:
    assert joint_attention(draw(2, 9, 96), 2).is_contiguous()


@given(
    B=st.integers(1, 3),
    N=st.integers(1, 40),
    heads=st.integers(1, 4),
    d=st.integers(1, 33),
    layout=st.sampled_from(["plain", "tokens first", "channels first", "part", "every other"]),
    dtype=st.sampled_from([torch.float32, torch.float16] if INTERPRETED else DTYPES),
    seed=st.integers(0, 2**32),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_and_strides(B, N, heads, d, layout, dtype, seed, backend) -> None:
    torch.manual_seed(seed)
    packed = 3 * heads * d
    qkv = {
        "plain": lambda: draw(B, N, packed, dtype=dtype),
        "tokens first": lambda: draw(N, B, packed, dtype=dtype).transpose(0, 1),
        "channels first": lambda: draw(B, packed, N, dtype=dtype).transpose(1, 2),
        "part": lambda: draw(B, N + 2, packed + 3, dtype=dtype)[:, 1:-1, 2:-1],
        "every other": lambda: draw(B, N, 2 * packed, dtype=dtype)[..., ::2],
    }[layout]()
    hold((B, N, heads * d), heads, dtype, qkv=qkv)


@pytest.mark.parametrize(("start", "spread"), [(0, "row"), (16, "all"), (32, "all")])
def test_nan_stays_in_its_sample_and_head(start, spread, backend) -> None:
    """A query's NaN reaches its own row, a key's or a value's every row of the head."""
    qkv = draw(3, 13, 48)  # two heads of eight channels
    qkv[1, 4, start + 8 + 3] = float("nan")
    bad = joint_attention(qkv, 2).isnan()
    want = torch.zeros_like(bad)
    rows = slice(4, 5) if spread == "row" else slice(None)
    channels = slice(11, 12) if start == 32 else slice(8, 16)
    want[1, rows, channels] = True
    assert torch.equal(bad, want)


def test_infinity_stays_in_its_channel() -> None:
    """Also where numbers are multiplied in parts, which infinity has none of."""
    qkv = draw(2, 130, 48)  # two heads of eight channels
    qkv[1, 40, 32 + 8 + 3] = torch.inf
    want = reference.joint_attention(qkv, 2)
    assert want[1, :, 11].isposinf().all()
    torch.testing.assert_close(joint_attention(qkv, 2), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_opcheck(dtype, backend) -> None:
    if backend == "reference" or (INTERPRETED and dtype == torch.bfloat16):
        pytest.skip("no operator of its own, or none that the interpreter computes")
    ops = kernels(backend)
    qkv = draw(2, 9, 96, dtype=dtype)
    torch.library.opcheck(ops.joint_attention.default, (qkv, 2, 0.25))
    out, lse = ops.joint_attention(qkv, 2, 0.25)
    arguments = (draw(2, 9, 32, dtype=dtype), qkv, out, lse, 2, 0.25)
    torch.library.opcheck(ops.joint_attention_backward.default, arguments)


def test_saves_the_sums_in_base_2(backend) -> None:
    if backend == "reference":
        pytest.skip("it saves nothing")
    qkv = draw(2, 9, 96)
    _, lse = kernels(backend).joint_attention(qkv, 2, -0.25)
    q, k, _ = qkv.double().reshape(2, 9, 3, 2, 16).permute(2, 0, 3, 1, 4)
    want = torch.logsumexp(-0.25 * q @ k.mT, -1) / torch.log(torch.tensor(2.0))
    torch.testing.assert_close(lse.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not INTERPRETED, reason="only Triton's kernels give way to PyTorch's")
def test_pytorchs_kernel_where_it_is_faster(backend) -> None:
    """As the table says, for output and gradient as a whole."""
    recording = import_module("uniformer_kernels.triton.launch").recording
    for sdpa in (False, True):
        with attention_tiles("joint_attention", backend, sdpa=sdpa), recording() as launches:
            hold((2, 9, 24), 3, scale=0.3)
        assert bool(launches) != sdpa


def test_compiles_for_any_size(backend) -> None:
    """Although tables are looked up by size, and PyTorch's kernel may be in the graph."""
    torch.compiler.reset()
    compiled = torch.compile(joint_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for B, N in ((2, 9), (3, 17)):
        qkv = draw(B, N, 48)
        torch.testing.assert_close(compiled(qkv, 2), joint_attention(qkv, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(dtype) -> None:
    qkv, dy = draw(2, 150, 384, dtype=dtype), draw(2, 150, 128, dtype=dtype)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(
            evaluate(partial(joint_attention, num_heads=2), {"qkv": qkv}, upstream=lambda _: dy)
        )
    for other in results[1:]:
        for name, result in results[0].items():
            assert torch.equal(result, other[name]), name


@pytest.mark.parametrize(
    ("shape", "num_heads", "message"),
    [
        ((9, 48), 2, r"qkv: expected \[B, N, 3C\], got \[9, 48\]"),
        ((1, 2, 9, 48), 2, r"qkv: expected \[B, N, 3C\], got \[1, 2, 9, 48\]"),
        ((2, 9, 50), 2, r"num_heads: .*got 2 with qkv \[2, 9, 50\]"),
        ((2, 9, 48), 3, r"num_heads: .*got 3 with qkv \[2, 9, 48\]"),
        ((2, 9, 48), 0, r"num_heads: .*got 0 with qkv \[2, 9, 48\]"),
        ((2, 9, 48), -2, r"num_heads: .*got -2 with qkv \[2, 9, 48\]"),
    ],
    ids=str,
)
def test_refuses_sizes_that_do_not_fit(shape, num_heads, message, backend) -> None:
    with pytest.raises(ValueError, match=f"joint_attention: {message}"):
        joint_attention(draw(*shape), num_heads)


def test_no_tokens_at_all(backend) -> None:
    qkv = draw(2, 0, 48).requires_grad_()
    y = joint_attention(qkv, 2)
    y.sum().backward()
    assert y.shape == (2, 0, 16)
    assert qkv.grad.shape == qkv.shape
