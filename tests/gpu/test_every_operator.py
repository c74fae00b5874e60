"""What only a GPU can show of every operator: bfloat16, streams, graphs, determinism, size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import uniformer_kernels as uk
from tests.contract import check, draw, evaluate
from tests.ops.calls import CALLS, Call
from uniformer_kernels import cuda, reference
from uniformer_kernels.backends import OPERATORS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
every_operator = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.operator)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture(autouse=True, params=["triton", "cuda"])
def _exact_reference(request):
    """Every backend a GPU has, against PyTorch's own in full precision, as its float32 is meant."""
    call = request.node.callspec.params.get("call")
    if call is not None and request.param not in OPERATORS[call.operator].implementations:
        pytest.skip(f"{request.param} does not implement it")
    if request.param == "cuda" and (reason := cuda.declines(torch.empty(0, device="cuda"))):
        pytest.skip(reason)
    with torch.backends.cudnn.flags(allow_tf32=False), uk.use_backend(request.param):
        yield


def on_gpu(call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.cuda() for name, t in call.inputs(dtype).items()}


@every_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(call: Call, dtype: torch.dtype) -> None:
    inputs = on_gpu(call, dtype)
    check(call.kernel, call.reference, inputs, reduction=call.reduction, needs=call.needs)


@every_operator
def test_bitwise_repeatable(call: Call) -> None:
    inputs = on_gpu(call, torch.bfloat16)
    dy = draw(*call.kernel(**inputs).shape)
    first = evaluate(call.kernel, inputs, upstream=lambda _: dy, needs=call.needs)
    for _ in range(10):
        again = evaluate(call.kernel, inputs, upstream=lambda _: dy, needs=call.needs)
        assert all(torch.equal(first[name], again[name]) for name in first)


@every_operator
def test_captured_as_a_graph(call: Call) -> None:
    """Forward and backward, replayed on inputs that were not there at the capture."""
    inputs = on_gpu(call, torch.float32)
    dy = draw(*call.kernel(**inputs).shape).cuda()

    def run() -> dict[str, Tensor]:
        return evaluate(call.kernel, inputs, upstream=lambda _: dy, needs=call.needs)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for t in inputs.values():
        t.copy_(draw(*t.shape).cuda() * 0.5)
    graph.replay()
    torch.cuda.synchronize()
    want = run()
    assert all(torch.equal(captured[name], want[name]) for name in want)


@every_operator
def test_on_another_stream(call: Call) -> None:
    """The kernels wait for what came before them on the current stream, not on the default one."""
    inputs = on_gpu(call, torch.float32)
    want = call.kernel(**inputs)
    torch.cuda.synchronize()
    first = next(iter(inputs))
    late = torch.zeros_like(inputs[first])
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(inputs[first])
        got = call.kernel(**inputs | {first: late})
    stream.synchronize()
    assert torch.equal(got, want)


@every_operator
def test_compiles_without_a_graph_break(call: Call) -> None:
    inputs = on_gpu(call, torch.float32)
    dy = draw(*call.kernel(**inputs).shape)
    torch.compiler.reset()
    compiled = torch.compile(call.kernel, fullgraph=True)
    got = evaluate(compiled, inputs, upstream=lambda _: dy, needs=call.needs)
    want = evaluate(call.kernel, inputs, upstream=lambda _: dy, needs=call.needs)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-4)


def test_more_than_2_to_the_31_elements() -> None:
    """A map of 2.2 billion numbers: its last frames must be where they belong."""
    x = torch.zeros(1, 34, 1024, 1024, 64, device="cuda", dtype=torch.bfloat16)
    x[:, -2:, -8:, -8:] = torch.randn(8, 8, 64, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(64, 1, 3, 3, 3, device="cuda", dtype=torch.bfloat16)
    y = uk.depthwise_conv3d(x, weight)
    corner = reference.depthwise_conv3d(x[:, -4:, -12:, -12:].contiguous(), weight)
    torch.testing.assert_close(y[:, -2:, -8:, -8:], corner[:, -2:, -8:, -8:], rtol=2e-2, atol=2e-2)
    assert not y[:, :-4].any()
