"""CUDA graphs of whole models: inference, and a training step with its optimiser."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.surroundings.models import input_of, loss_of, model_of, outputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
KINDS = ["image", "video", "light", "v2"]


def warmed_up(step) -> None:
    """On a stream of its own, as a capture wants it: kernels are compiled, buffers are there."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)


@pytest.mark.parametrize("kind", KINDS)
def test_inference(kind: str) -> None:
    """Replayed on inputs that were not there at the capture."""
    model, x = model_of(kind).cuda(), input_of(kind).cuda()
    with torch.no_grad():
        warmed_up(lambda: model(x))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = outputs(model(x))
        x.copy_(input_of(kind))
        graph.replay()
        want = outputs(model(x))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, want, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_training_step(kind: str) -> None:
    """Parameters and running statistics after replays are those after plain steps."""
    plain = model_of(kind).cuda().train()
    model = copy.deepcopy(plain)
    x = input_of(kind).cuda()
    state = copy.deepcopy(plain.state_dict())
    step = _step(model, x)
    warmed_up(step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    model.load_state_dict(state)  # in place: the graph knows where its tensors lie
    plain_step = _step(plain, x)
    for _ in range(2):
        x.copy_(input_of(kind))
        graph.replay()
        plain_step()
    torch.cuda.synchronize()
    for (name, got), want in zip(
        model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(got, want), name


def _step(model: nn.Module, x: torch.Tensor):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model(x)).backward()
        optimizer.step()

    return step


def test_compiled_with_cuda_graphs() -> None:
    """What ``mode="reduce-overhead"`` makes of a model."""
    torch.compiler.reset()
    model, x = model_of("image").cuda(), input_of("image").cuda()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(4):
            x.copy_(input_of("image"))
            torch.testing.assert_close(compiled(x).clone(), model(x), rtol=1e-3, atol=1e-3)
