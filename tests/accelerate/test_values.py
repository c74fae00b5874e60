"""Accelerated models compute, and learn, what the untouched ones do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract import within
from uniformer_kernels import accelerate, restore

from .models import light, official, v2
from .models.shapes import ConvNeXtBlock, SeparableVideo

Inputs = tuple[Any, ...]


def clips(T: int = 4, size: int = 32) -> Inputs:
    return (torch.randn(2, 3, T, size, size),)


def images(size: int = 64) -> Inputs:
    return (torch.randn(2, 3, size, size),)


def maps(*shape: int) -> Callable[[], Inputs]:
    return lambda: (torch.randn(2, 16, *shape),)


def tokens() -> Inputs:
    return torch.randn(10, 6, 32), 3


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs]]] = {
    "video": (official.UniFormer, lambda: clips(5)),
    "video, layer scale": (lambda: official.UniFormer(layer_scale=0.5), clips),
    "image": (lambda: official.UniFormer(2), images),
    "image, layer scale": (lambda: official.UniFormer(2, layer_scale=0.5), images),
    "divided": (lambda: official.SplitSABlock(16), maps(3, 4, 5)),
    "windows": (lambda: official.WindowSABlock(16), maps(7, 5)),
    "larger windows": (lambda: official.WindowSABlock(16, window_size=9), maps(7, 5)),
    "no qkv bias": (lambda: official.SABlock(16, qkv_bias=False), maps(3, 4, 5)),
    "sized stem": (lambda: official.SizedPatchEmbed(8, 16, 24, (4, 4)), maps(8, 8)),
    "overlapping stem": (
        lambda: official.PatchEmbed(16, 24, (3, 2, 2), (1, 2, 2), (1, 0, 0)),
        maps(3, 8, 6),
    ),
    "light video": (light.UniFormerLight, lambda: clips(4, 64)),
    "light image": (lambda: light.UniFormerLight(2, layer_scale=0.5), images),
    "V2": (lambda: v2.Transformer(norm=nn.LayerNorm), tokens),
    "V2, single": (lambda: v2.Transformer(lmhra=1, norm=nn.LayerNorm), tokens),
    "V2, none": (lambda: v2.Transformer(lmhra=0, norm=nn.LayerNorm), tokens),
    "ConvNeXt": (ConvNeXtBlock, maps(9, 8)),
    "separable": (SeparableVideo, maps(3, 8, 9)),
}


def randomised(model: nn.Module) -> nn.Module:
    """No parameter at 0 or 1, running statistics that differ."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var"):
            tensor.data.uniform_(0.5, 2)
        elif tensor.dim() == 1 and tensor.is_floating_point():
            tensor.data.add_(0.2 * torch.randn_like(tensor))
    return model


def run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs, every gradient, and the buffers the call leaves behind."""
    dtype = next(model.parameters()).dtype
    x, *others = inputs
    x = x.to(dtype).requires_grad_()
    y = model(x, *others)
    outputs = y if isinstance(y, tuple) else (y,)
    generator = torch.Generator().manual_seed(1)
    loss = sum((o * torch.randn(o.shape, generator=generator).to(dtype)).sum() for o in outputs)
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, [x, *wanted.values()], allow_unused=True)
    return {
        **{f"output {i}": o.detach() for i, o in enumerate(outputs)},
        **dict(zip(["x", *wanted], gradients, strict=True)),
        **{name: b.clone() for name, b in model.named_buffers()},
    }


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_gradients_and_statistics(name: str, training: bool) -> None:
    make, inputs = CASES[name][0], CASES[name][1]()
    plain = randomised(make()).train(training)
    exact, ours = copy.deepcopy(plain).double(), copy.deepcopy(plain)
    state = {key: (t.data_ptr(), t.clone()) for key, t in ours.state_dict().items()}
    assert accelerate(ours)

    assert list(ours.state_dict()) == list(state)
    for key, tensor in ours.state_dict().items():
        assert tensor.data_ptr() == state[key][0]
        assert torch.equal(tensor, state[key][1])

    got, theirs, want = (run(model, inputs) for model in (ours, plain, exact))
    assert got.keys() == want.keys()
    for key, tensor in want.items():
        if tensor is None or not tensor.is_floating_point():
            assert torch.equal(got[key], tensor) if tensor is not None else got[key] is None
        else:
            scale = max(1.0, tensor.abs().max().item())
            parts = (t / scale for t in (got[key], theirs[key], tensor))
            mine, plainly, exactly = parts
            within(f"{name}: {key}", mine, [plainly], exactly, reduction=20_000)

    restore(ours)
    assert all(type(a) is type(b) for a, b in zip(ours.modules(), plain.modules(), strict=True))
    assert all(
        a.__dict__.keys() == b.__dict__.keys()
        for a, b in zip(ours.modules(), plain.modules(), strict=True)
    )
    for key, tensor in run(ours.load_state_dict(plain.state_dict()) and ours, inputs).items():
        assert tensor is None or tensor.shape == want[key].shape


def test_restored_models_compute_to_the_bit_what_they_did() -> None:
    model, x = official.UniFormer().eval(), clips()[0]
    before = model(x)
    accelerate(model)
    restore(model)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("block", [official.CBlock, official.SABlock])
def test_frozen_parameters_get_no_gradient(block: type[nn.Module]) -> None:
    model = block(16)
    model.pos_embed.requires_grad_(False)
    model.mlp.fc1.weight.requires_grad_(False)
    accelerate(model)
    model(maps(3, 4, 5)()[0]).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {"pos_embed.weight", "pos_embed.bias", "mlp.fc1.weight"}


@pytest.mark.parametrize("ndim", [2, 3])
def test_drop_path_loses_a_samples_branch_or_scales_it(ndim: int) -> None:
    block = randomised(official.SABlock(16, ndim=ndim, rate=0.5))
    x = torch.randn(32, 16, *(3, 4, 5)[-ndim:])
    with torch.no_grad():
        z = (x + block.pos_embed(x)).flatten(2).mT
        results = []
        for first in (0, 2):
            z1 = z + first * block.attn(block.norm1(z))
            results += [z1 + second * block.mlp(block.norm2(z1)) for second in (0, 2)]
        accelerate(block)
        y = block(x).flatten(2).mT
        errors = torch.stack([(y - r).abs().amax((1, 2)) for r in results])
        assert errors.amin(0).max() < 1e-4  # every sample is one of the four
        assert errors.argmin(0).unique().numel() == 4  # and all of them come

        block.eval()
        z1 = z + block.attn(block.norm1(z))
        kept = z1 + block.mlp(block.norm2(z1))
        torch.testing.assert_close(block(x).flatten(2).mT, kept, rtol=1e-4, atol=1e-4)


def test_maps_stay_channels_last_from_block_to_block() -> None:
    model, x = official.UniFormer().eval(), clips()[0]
    accelerate(model)
    y = model.patch_embed1(x)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    assert model.blocks1[0](y).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last_3d], ids=["first", "last"]
)
def test_depthwise_convolutions_keep_the_layout(layout: torch.memory_format) -> None:
    conv = nn.Conv3d(16, 16, 3, padding=1, groups=16)
    x = torch.randn(2, 16, 3, 4, 5).to(memory_format=layout)
    strides = conv(x).stride()
    accelerate(conv)
    assert conv(x).stride() == strides


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = randomised(official.UniFormer()).eval()
    (x,) = clips()
    exact = copy.deepcopy(model).to(dtype).double()(x.to(dtype).double())
    ours, plain = (copy.deepcopy(model).to(dtype) for _ in range(2))
    accelerate(ours)
    within("logits", ours(x.to(dtype)), [plain(x.to(dtype))], exact, reduction=20_000)


def test_autocast() -> None:
    model = randomised(official.UniFormer()).eval()
    (x,) = clips()
    exact, ours = model(x).detach(), copy.deepcopy(model)
    accelerate(ours)
    with torch.autocast("cpu", torch.bfloat16):
        got, plain = ours(x), model(x)
    assert got.dtype == plain.dtype
    error, usual = ((t.detach() - exact).abs().max() for t in (got, plain))
    assert error <= 2 * usual + 1e-2


def test_wrong_inputs_get_the_models_own_error() -> None:
    block = official.CBlock(16)
    accelerate(block)
    with pytest.raises(RuntimeError, match="conv3d"):
        block(torch.randn(16, 4))
    stem = official.SizedPatchEmbed(8, 16, 24, (4, 4))
    accelerate(stem)
    with pytest.raises(AssertionError):
        stem(torch.randn(2, 16, 16, 16))
