"""What people put into a model still happens: hooks, adapters, parametrisations, frozen layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations
from uniformer.layers import (
    ConvStem,
    DividedBlock,
    GlobalBlock,
    HourglassBlock,
    LocalBlock,
    PatchStem,
    WindowBlock,
)
from uniformer.layers.v2 import GlobalUniBlock, LocalUniBlock

DIM, GRID = 8, (2, 4, 5)
HOURGLASS = {"mlp_ratio": 3, "keep": 0.5, "score": "token", "running_mean": True}
UNIBLOCK = {"num_heads": 2, "grid": (2, 3), "local_mhra": "double", "dw_reduction": 2.0}

MAP, IMAGE, CLASSES = (2, *GRID, DIM), (2, 1, 4, 5, DIM), (2, 3, 7, DIM)
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "local": (partial(LocalBlock, DIM, ndim=3, layer_scale=0.5), (MAP,)),
    "local image": (partial(LocalBlock, DIM, ndim=2), (IMAGE,)),
    "global": (partial(GlobalBlock, DIM, head_dim=4, ndim=3, layer_scale=0.5), (MAP,)),
    "window": (partial(WindowBlock, DIM, head_dim=4, ndim=3, window_size=3), (MAP,)),
    "divided": (partial(DividedBlock, DIM, head_dim=4), (MAP,)),
    "hourglass": (
        partial(HourglassBlock, DIM, head_dim=4, ndim=3, layer_scale=0.5, **HOURGLASS),
        (MAP, (2, 1, DIM), (2, 40)),
    ),
    "hourglass with mean": (
        partial(HourglassBlock, DIM, head_dim=4, ndim=3, **{**HOURGLASS, "score": "mean"}),
        (MAP, (2, 1, DIM), (2, 40)),
    ),
    "local uniblock": (partial(LocalUniBlock, DIM, **UNIBLOCK), (CLASSES,)),
    "global uniblock": (partial(GlobalUniBlock, DIM, num_heads=2), ((2, 1, DIM), (2, 9, DIM))),
    "patch stem": (partial(PatchStem, DIM, 12, kernel=(1, 2, 2), stride=(1, 2, 2)), (MAP,)),
    "patch stem, image": (partial(PatchStem, DIM, 12, kernel=(2, 2), stride=(2, 2)), (IMAGE,)),
    "conv stem": (partial(ConvStem, DIM, 6, 12, temporal_strides=(1, 2)), (MAP,)),
    "conv stem, image": (partial(ConvStem, DIM, 6, 12), (IMAGE,)),
}


LAYERS = nn.Linear, nn.Conv2d, nn.Conv3d


def _block(kind: str) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    make, shapes = BLOCKS[kind]
    block = make()
    for tensor in block.parameters():
        nn.init.normal_(tensor, 0.1, 0.3)
    return block.double(), [torch.randn(shape).double() for shape in shapes]


def _step(block: nn.Module, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Outputs, gradients of inputs and parameters, running statistics."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    outputs = block(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.manual_seed(1)
    torch.autograd.backward(outputs, [torch.randn_like(y) for y in outputs])
    return {
        **{f"output {i}": y.detach() for i, y in enumerate(outputs)},
        **{f"input {i}": x.grad for i, x in enumerate(inputs)},
        **{name: p.grad for name, p in block.named_parameters() if p.grad is not None},
        **dict(block.named_buffers()),
    }


def _same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, msg=f"{name}: {{}}".format)


def _parts(block: nn.Module) -> list[str]:
    """The modules that are called where they have hooks: all but activations and containers."""
    silent = nn.Sequential, nn.GELU
    names = [name for name, m in block.named_modules() if name and not isinstance(m, silent)]
    # PyTorch's own attention does not call its output projection either.
    names = [name for name in names if not name.endswith("out_proj")]
    return [name for name in names if name not in ("lmhra1", "lmhra2")]


CASES = [(kind, part) for kind in BLOCKS for part in _parts(BLOCKS[kind][0]())]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "part"), CASES)
def test_hooks_fire_and_change_nothing(kind: str, part: str, training: bool) -> None:
    block, inputs = _block(kind)
    block.train(training)
    expected = _step(copy.deepcopy(block), inputs)
    seen: list[tuple[int, ...]] = []
    module = block.get_submodule(part)
    module.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
    module.register_full_backward_hook(lambda m, dx, dy: seen.append(dy[0].shape))
    _same(_step(block, inputs), expected)
    assert len(seen) == 2, "both hooks fire, once"
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):  # channels first, as the official models call it
        assert seen[0][1] == module.in_channels
        assert len(seen[0]) == 2 + len(module.kernel_size)


@pytest.mark.parametrize("kind", BLOCKS)
def test_global_hooks_fire_and_change_nothing(kind: str) -> None:
    block, inputs = _block(kind)
    expected = _step(copy.deepcopy(block), inputs)
    seen: list[nn.Module] = []
    handle = register_module_forward_hook(lambda m, args, y: seen.append(m))
    with handle:
        _same(_step(block, inputs), expected)
    assert {block.get_submodule(part) for part in _parts(block)} <= set(seen)


def test_a_hook_may_change_a_result() -> None:
    block, inputs = _block("global")
    block.attn.register_forward_hook(lambda m, args, y: torch.zeros_like(y))
    block.mlp.register_forward_hook(lambda m, args, y: torch.zeros_like(y))
    x = inputs[0]
    dpe = block.pos_embed(x.movedim(-1, 1)).movedim(1, -1)
    torch.testing.assert_close(block(x), x + dpe)


class Adapted(nn.Module):
    """A layer and a low-rank one beside it, as LoRA's."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        fan_out, fan_in = base.weight.shape[:2]
        kind = nn.Linear
        if not isinstance(base, nn.Linear):
            kind = partial(type(base), kernel_size=1)
        self.down, self.up = kind(fan_in, 2, bias=False), kind(2, fan_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def _layers(block: nn.Module) -> list[str]:
    """Linear layers and pointwise convolutions, but not an attention's own output projection."""
    return [
        name
        for name, m in block.named_modules()
        if isinstance(m, LAYERS) and set(getattr(m, "kernel_size", [1])) == {1} and _groups(m) == 1
        if not name.endswith("out_proj")
    ]


def _groups(module: nn.Module) -> int:
    return getattr(module, "groups", 1)


@pytest.mark.parametrize("kind", [kind for kind in BLOCKS if _layers(BLOCKS[kind][0]())])
def test_adapters(kind: str) -> None:
    """An adapted layer computes what one layer with the sum of both weights does."""
    block, inputs = _block(kind)
    merged, adapted = copy.deepcopy(block), _layers(block)
    for name in adapted:
        layer = Adapted(block.get_submodule(name)).double()
        block.set_submodule(name, layer)
        product = layer.up.weight.flatten(1) @ layer.down.weight.flatten(1)
        weight = merged.get_submodule(name).weight
        weight.data += product.view_as(weight)
    got, want = _step(block, inputs), _step(merged, inputs)
    for name, tensor in want.items():
        layer, _, kind = name.rpartition(".")
        if layer in adapted:
            name = f"{layer}.base.{kind}"
        torch.testing.assert_close(got[name], tensor, msg=f"{name}: {{}}".format)


@pytest.mark.parametrize("kind", BLOCKS)
def test_parametrisations_learn(kind: str) -> None:
    """Weight normalisation starts as what was there; its length and direction get gradients."""
    block, inputs = _block(kind)
    names = [name for name, m in block.named_modules() if isinstance(m, LAYERS)]
    expected = _step(copy.deepcopy(block), inputs)
    for name in names:
        parametrizations.weight_norm(block.get_submodule(name))
    got = _step(block, inputs)
    for name, tensor in expected.items():
        if not name.endswith("weight") or name.rpartition(".")[0] not in names:
            torch.testing.assert_close(got[name], tensor, msg=f"{name}: {{}}".format)
    lengths = [p.grad for n, p in block.named_parameters() if n.endswith("original0")]
    assert len(lengths) == len(names)
    assert all(grad is not None and grad.abs().max() > 0 for grad in lengths)


@pytest.mark.parametrize("kind", BLOCKS)
def test_frozen_parameters_get_no_gradient(kind: str) -> None:
    block, inputs = _block(kind)
    expected = _step(copy.deepcopy(block), inputs)
    for index, parameter in enumerate(block.parameters()):
        parameter.requires_grad_(index % 2 == 1)
    got = _step(block, inputs)
    frozen = {name for name, p in block.named_parameters() if not p.requires_grad}
    assert frozen
    _same(got, {name: tensor for name, tensor in expected.items() if name not in frozen})


@pytest.mark.parametrize("kind", ["local", "global", "hourglass", "local uniblock"])
def test_layers_of_another_dtype_are_an_error(kind: str) -> None:
    block, inputs = _block(kind)
    layer = next(m for m in block.modules() if isinstance(m, LAYERS))
    layer.float()
    with pytest.raises(TypeError, match=r"weight: expected torch.float64 like x, got torch.flo"):
        block(*inputs)


def test_a_convolution_with_holes_is_not_taken_for_one_without() -> None:
    block, (x,) = _block("local")
    block.attn = nn.Conv3d(DIM, DIM, 3, padding=2, dilation=2, groups=DIM).double()
    plain = copy.deepcopy(block)
    plain.attn.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(block(x), plain(x))


@pytest.mark.parametrize("missing", ["weight", "bias"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_layer_norm_without_parameters_still_normalises(kind: str, missing: str) -> None:
    make, shapes = BLOCKS[kind]
    block, inputs = make().eval(), [torch.randn(shape) for shape in shapes]
    plain = copy.deepcopy(block)
    for name, module in list(plain.named_modules()):
        if isinstance(module, nn.LayerNorm):
            # As they start, the parameters do nothing.
            bare = nn.LayerNorm(
                module.normalized_shape, module.eps, missing != "weight", missing != "bias"
            )
            plain.set_submodule(name, bare)
    got, want = (block_(*inputs) for block_ in (plain, block))
    for one, other in zip(*(t if isinstance(t, tuple) else (t,) for t in (got, want)), strict=True):
        torch.testing.assert_close(one, other)
