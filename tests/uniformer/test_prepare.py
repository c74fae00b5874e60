"""``prepare``: the same outputs from fewer operators, and an error where they would be others."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
import uniformer
from torch import Tensor, nn
from uniformer.models.light import VideoLightUniFormer
from uniformer.models.v2 import UniFormerV2
from uniformer.models.video import VideoUniFormer

from uniformer_kernels import backends, bfloat16, ops

V2 = {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 16, "resolution": 32, "num_frames": 2}
LIGHT = {"dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1), "head_dim": 16, "layer_scale_init": 0.5}

MODELS = {
    "small": (lambda: VideoUniFormer(depths=(1, 1, 1, 1), num_classes=5), (2, 3, 2, 32, 32)),
    "light": (lambda: VideoLightUniFormer(**LIGHT, num_classes=5), (2, 3, 4, 64, 64)),
    "v2": (lambda: UniFormerV2(**V2, num_classes=5), (2, 3, 2, 32, 32)),
    "dense": (
        lambda: uniformer.create_model("uniformer_dense_xxs"),
        (1, 3, 64, 96),
    ),
    "image": (lambda: uniformer.create_model("uniformer_small_plus"), (1, 3, 64, 64)),
}


def _model(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A model whose every parameter and statistic matters, and an input."""
    torch.manual_seed(0)
    make, shape = MODELS[kind]
    model = make()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var"):
            tensor.data.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.dim() <= 1:
            tensor.data += 0.2 * torch.randn_like(tensor)
        elif tensor.dim() > 1 and not tensor.any():  # what starts as nothing
            nn.init.normal_(tensor, 0.0, 0.1)
    return model.to(dtype).eval(), torch.randn(shape).to(dtype)


def _outputs(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        y = model(x)
    return y if isinstance(y, tuple) else (y,)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_same_outputs(kind: str, backend: str | None) -> None:
    model, x = _model(kind)
    before = copy.deepcopy(model.state_dict())
    expected = _outputs(model, x)
    prepared = uniformer.prepare(model)
    if backend is None:
        got = _outputs(prepared, x)
    else:
        with backends.use_backend(backend):
            got = _outputs(prepared, x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(p.requires_grad for p in prepared.parameters())
    gammas = [n for n, _ in prepared.named_parameters() if "gamma" in n]
    norms = [
        n for n, m in prepared.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    assert not gammas
    assert norms in ([], ["norm"]), "only what features are normalised by stays"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, x = _model("small")
    (expected,) = _outputs(model, x)
    model, x = model.to(dtype), x.to(dtype)
    (plain,), (got,) = _outputs(model, x), _outputs(uniformer.prepare(model), x)
    floor = torch.finfo(dtype).eps * expected.abs().max()
    assert (got - expected).abs().max() <= 2 * (plain - expected).abs().max() + 4 * floor


def test_a_local_block_is_two_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = _model("small")
    block = uniformer.prepare(model).blocks1[0]
    called: list[str] = []
    call = backends.Operator.__call__

    def record(self: backends.Operator, *args: object, **kwargs: object) -> object:
        called.append(self.name)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(backends.Operator, "__call__", record)
    with torch.no_grad():
        block(torch.randn(1, 1, 8, 8, 64).double())
    assert called == ["depthwise_linear", "depthwise_feed_forward"]


def test_gradients_reach_the_input() -> None:
    model, x = _model("small")
    want, got = x.clone().requires_grad_(), x.clone().requires_grad_()
    model(want).sum().backward()
    uniformer.prepare(model)(got).sum().backward()
    torch.testing.assert_close(got.grad, want.grad)


def test_a_part_in_training_is_an_error() -> None:
    model, x = _model("small")
    prepared = uniformer.prepare(model)
    model.blocks2[0].norm1.train()
    with pytest.raises(ValueError, match=r"evaluation mode .*got blocks2.0.norm1 in training"):
        uniformer.prepare(model)
    with pytest.raises(ValueError, match="got VideoUniFormer in training mode"):
        uniformer.prepare(model.train())
    prepared.train()
    with pytest.raises(RuntimeError, match=r"expected eval\(\), got train\(\)"):
        prepared(x)


def test_nothing_of_ours_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected a model with layers of uniformer, got Linear"):
        uniformer.prepare(nn.Linear(2, 2).eval())


def _in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model.blocks1[0].conv1.weight.mul_(2)


def _replaced(model: nn.Module) -> None:
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())


def _loaded(model: nn.Module) -> None:
    model.load_state_dict(model.state_dict())


def _statistics(model: nn.Module) -> None:
    model.train()(torch.randn(2, 3, 2, 32, 32).double())
    model.eval()


def test_a_parameter_taken_away_is_an_error() -> None:
    model, x = _model("small")
    prepared = uniformer.prepare(model)
    model.head.bias = None
    gc.collect()
    with pytest.raises(RuntimeError, match=r"\.bias has changed since the model was prepared"):
        prepared(x)


@pytest.mark.parametrize("change", [_in_place, _replaced, _loaded, _statistics])
def test_stale_weights_are_an_error(change: object) -> None:
    model, x = _model("small")
    prepared = uniformer.prepare(model)
    expected = prepared(x)
    change(model)
    with pytest.raises(RuntimeError, match="has changed since the model was prepared"):
        prepared(x)
    torch.testing.assert_close(copy.deepcopy(uniformer.prepare(model))(x), _outputs(model, x)[0])
    del model
    gc.collect()
    assert torch.equal(prepared(x), expected), "without the model there is nothing to be behind"


def test_weights_go_into_the_model_only() -> None:
    model, _ = _model("small")
    prepared = uniformer.prepare(model)
    before = copy.deepcopy(prepared.state_dict())
    with pytest.raises(RuntimeError, match="the model is prepared"):
        prepared.load_state_dict(model.state_dict())
    torch.testing.assert_close(prepared.state_dict(), before, rtol=0, atol=0)


def test_hooks_fire_in_what_was_prepared() -> None:
    model, x = _model("small")
    seen: list[str] = []
    for name in ("blocks1.0.conv1", "blocks1.0.norm2", "blocks3.0.attn", "blocks2.0.mlp"):
        hook = lambda *_, name=name: seen.append(name)  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    expected = _outputs(model, x)
    del seen[:]
    torch.testing.assert_close(_outputs(uniformer.prepare(model), x), expected)
    assert sorted(seen) == ["blocks1.0.conv1", "blocks1.0.norm2", "blocks2.0.mlp", "blocks3.0.attn"]


def test_a_model_inside_another() -> None:
    model, x = _model("small")
    whole = nn.Sequential(model, nn.BatchNorm1d(5).double()).eval()
    prepared = uniformer.prepare(whole)
    torch.testing.assert_close(_outputs(prepared, x), _outputs(whole, x))
    assert prepared[0].blocks1[0].norm1 is None
    assert isinstance(prepared[1], nn.BatchNorm1d)


def test_it_is_pickled_and_copied() -> None:
    model, x = _model("small")
    prepared = uniformer.prepare(model)
    file = io.BytesIO()
    torch.save(prepared, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    _in_place(model)
    expected = _outputs(uniformer.prepare(model), x)
    with pytest.raises(RuntimeError, match="has changed"):
        copy.deepcopy(prepared)(x)
    assert not torch.equal(_outputs(loaded, x)[0], expected[0])


@pytest.mark.parametrize("kind", ["small", "light", "v2"])
def test_compiled_and_exported(kind: str) -> None:
    model, x = _model(kind, torch.float32)
    prepared = uniformer.prepare(model)
    expected = _outputs(prepared, x)
    compiled = torch.compile(prepared, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(_outputs(compiled, x), expected)
    program = torch.export.export(prepared, (x,), strict=False)
    torch.testing.assert_close(_outputs(program.module(), x), expected)


def _pack_others(model: nn.Module) -> int:
    """Give the layers what is packed of weights twice as large; how many there are."""
    layers = [m for m in model.modules() if hasattr(m, "packed")]
    for m in layers:
        m.packed.bytes = ops.pack_linear(2 * m.weight.flatten(1), m.bias)
    return len(layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_packed_once(dtype: torch.dtype) -> None:
    if not bfloat16.multiplies(dtype):
        pytest.skip(f"{dtype} is multiplied as it lies")
    model, x = _model("small", dtype)
    prepared = uniformer.prepare(model)
    (expected,) = _outputs(prepared, x)
    assert set(prepared.state_dict()) <= set(model.state_dict())
    program = torch.export.export(prepared, (x,), strict=False)
    assert not program.constants, "a file for any processor"
    file = io.BytesIO()
    torch.save(prepared, file)
    file.seek(0)
    for other in (copy.deepcopy(prepared), torch.load(file, weights_only=False)):
        assert torch.equal(_outputs(other, x)[0], expected)
        assert _pack_others(other) == 2 * 4 + 2 * 4, "four products of each block"
        assert not torch.equal(_outputs(other, x)[0], expected), "they multiply by what is packed"
    with torch.no_grad():
        for m in prepared.modules():
            if hasattr(m, "packed"):
                m.weight.mul_(0.5)
    with backends.use_backend("reference"):
        (changed,) = _outputs(prepared, x)
    for other in (prepared, copy.deepcopy(prepared)):
        got = _outputs(other, x)[0]
        assert (got - changed).abs().max() < 0.1 * (expected - changed).abs().max(), "not stale"


def test_another_dtype_after_packing() -> None:
    model, x = _model("small", torch.float32)
    prepared = uniformer.prepare(model).bfloat16()
    assert torch.equal(
        _outputs(prepared, x.bfloat16())[0], _outputs(copy.deepcopy(prepared), x.bfloat16())[0]
    )
    floor = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(
        _outputs(prepared, x.bfloat16())[0].float(), _outputs(model, x)[0], rtol=0, atol=32 * floor
    )


def test_memory_changes_what_is_kept_and_nothing_else() -> None:
    def step(memory: str) -> tuple[Tensor, Tensor, int]:
        torch.manual_seed(0)
        model = uniformer.create_model("uniformer_xxs", num_classes=3, memory=memory)
        kept = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = sum(y.square().sum() for y in model(torch.randn(2, 3, 64, 64)))
        loss.backward()
        return loss, model.blocks1[0].conv1.weight.grad, kept

    *fast, kept = step("fast")
    *small, kept_less = step("small")
    torch.testing.assert_close(small, fast)
    assert kept_less < kept / 2


def test_memory_of_another_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="memory: expected 'fast' or 'small', got 'tiny'"):
        uniformer.create_model("uniformer_xxs", memory="tiny")
