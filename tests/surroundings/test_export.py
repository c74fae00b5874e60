"""torch.export: kernels as operators of the program, and the same program without them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

import uniformer_kernels as uk
from tests.ops.calls import CALLS, Call
from tests.surroundings.models import close, input_of, model_of

every_operator = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.operator)


def kernels_in(program: ExportedProgram) -> Counter[str]:
    """How often every kernel stands in the program and the parts of it."""
    parts = [m for m in program.graph_module.modules() if isinstance(m, GraphModule)]
    names = [str(node.target) for part in parts for node in part.graph.nodes]
    return Counter(name.split(".")[1] for name in names if name.startswith("uniformer_kernels"))


def decomposed(program: ExportedProgram) -> ExportedProgram:
    program = program.run_decompositions(uk.decompositions())
    assert not kernels_in(program)
    return program


class Calling(nn.Module):
    """An operator whose parameters are a module's."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.kernel = call.kernel
        inputs = call.inputs()
        first = next(iter(inputs))
        self.activations = [first, *(n for n in ("residual", "memory") if n in inputs)]
        for name, t in inputs.items():
            if name not in self.activations:
                self.register_parameter(name, nn.Parameter(t))

    def forward(self, *activations: Tensor) -> Tensor:
        named = zip(self.activations, activations, strict=True)
        return self.kernel(**dict(named), **dict(self.named_parameters()))


@every_operator
def test_operators(call: Call) -> None:
    """For any batch, with kernels and without."""
    module = Calling(call).requires_grad_(call.needs != ())
    sizes = {name: call.shapes[name] for name in module.activations}
    batch = Dim("batch")

    def inputs(size: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(size, *shape[1:]) for shape in sizes.values())

    program = torch.export.export(
        module, inputs(2), dynamic_shapes=(tuple({0: batch} for _ in sizes),)
    )
    assert kernels_in(program)
    plain = decomposed(program)
    for size in (1, 2, 5):
        xs = inputs(size)
        with torch.no_grad():
            want = module(*xs)
        close(program.module()(*xs), want)
        close(plain.module()(*xs), want)


class Hourglass(nn.Module):
    """What shrinks tokens and recovers them, with its score."""

    def forward(self, x: Tensor, qkv: Tensor, prefix: Tensor) -> tuple[Tensor, ...]:
        y, score = uk.joint_attention_with_score(qkv, 2)
        tokens, index = uk.token_shrink(x, score, 3, prefix=prefix)
        recovered = x, index, tokens[:, 1:4], tokens[:, -1:]
        back = uk.token_recover(*recovered)
        both = uk.token_recover_with_importance(*recovered, score, score[:, 1:6], trade_off=0.3)
        return y, tokens, index, back, *both, uk.moments(x, shift=x[0, 0].detach())


def test_token_selection() -> None:
    inputs = torch.randn(2, 7, 8), torch.randn(2, 7, 24), torch.randn(2, 1, 8)
    inputs[1][0] = 0  # every token is as important as the others
    program = torch.export.export(Hourglass(), inputs)
    recovers = "token_recover", "token_recover_with_importance"
    names = "joint_attention_with_score", "token_shrink", *recovers, "moments"
    assert kernels_in(program) == dict.fromkeys(names, 1)
    want = Hourglass()(*inputs)
    close(program.module()(*inputs), want)
    close(decomposed(program).module()(*inputs), want)


@pytest.mark.parametrize(("kind", "strict"), [("image", False), ("light", True), ("v2", False)])
def test_models(kind: str, strict: bool) -> None:
    model = model_of(kind)
    with torch.no_grad():
        program = torch.export.export(
            model, (input_of(kind),), dynamic_shapes=({0: Dim("batch")},), strict=strict
        )
    assert kernels_in(program)["depthwise_conv3d"] >= 4
    attention = "joint_attention_with_score" if kind == "light" else "joint_attention"
    assert kernels_in(program)[attention] >= 2
    plain = decomposed(program)
    for size in (1, 3):
        x = input_of(kind, size)
        with torch.no_grad():
            close(program.module()(x), model(x))
            close(plain.module()(x), model(x))


@pytest.mark.parametrize("kind", ["image", "light"])
def test_models_of_the_reference_backend_have_no_kernels(kind: str) -> None:
    model, x = model_of(kind), input_of(kind)
    with torch.no_grad(), uk.use_backend("reference"):
        program = torch.export.export(model, (x,))
    assert not kernels_in(program)
    with torch.no_grad():
        close(program.module()(x), model(x))


def test_saved_and_loaded(tmp_path) -> None:
    model, x = model_of("image"), input_of("image")
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        torch.export.save(program, tmp_path / "model.pt2")
        close(torch.export.load(tmp_path / "model.pt2").module()(x), model(x))
