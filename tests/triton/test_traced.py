"""Models on CUDA as fake tensors see them: no GPU is needed to trace, nor PyTorch's CUDA build.

The models here are those that call nothing which such a build alone knows.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import uniformer
from torch._subclasses.fake_tensor import FakeTensorMode

from uniformer_kernels.triton.library import NAMESPACE


@pytest.fixture
def _replaced_parameters() -> Iterator[None]:
    """Moving a module makes new parameters, as fake ones cannot take the place of real ones."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.mark.usefixtures("_replaced_parameters")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("uniformer_video_small", (2, 3, 8, 64, 64)),
        ("uniformer_small", (2, 3, 64, 64)),
    ],
)
def test_models_compile_without_a_graph_break(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = uniformer.create_model(name, depths=(1, 1, 1, 1)).eval()
    called: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compiler.reset()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = model.to_empty(device="cuda")
        x = torch.empty(shape, device="cuda")
        want = model(x)
        got = torch.compile(model, fullgraph=True, backend=backend)(x)
    assert got.shape == want.shape
    assert got.device.type == "cuda"
    assert any(target.startswith(NAMESPACE) for target in called)
    assert not any(target.startswith("uniformer_kernels.") for target in called)
