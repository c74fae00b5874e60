"""What people do with models works on accelerated ones: hooks, adapters, copies, compilers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.flop_counter import FlopCounterMode

from uniformer_kernels import accelerate, restore

from .models import light, official, v2


class LoRA(nn.Linear):
    """A linear layer with an adapter of rank 2."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features)
        self.load_state_dict(layer.state_dict())
        self.a = nn.Parameter(torch.randn(2, layer.in_features))
        self.b = nn.Parameter(torch.randn(layer.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.a.T @ self.b.T


@pytest.fixture
def own_forwards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes whose own forward has run, in order."""
    calls: list[str] = []

    def listening(cls: type[nn.Module]) -> Callable[..., Tensor]:
        forward = cls.forward

        def listen(self: nn.Module, *args: object) -> Tensor:
            calls.append(cls.__name__)
            return forward(self, *args)

        listen.__wrapped__ = forward
        return listen

    for cls in (official.CBlock, official.SABlock, official.PatchEmbed, official.Attention):
        monkeypatch.setattr(cls, "forward", listening(cls))
    return calls


def block(**options: object) -> tuple[nn.Module, nn.Module, Tensor]:
    """An accelerated block, the same untouched, and what they take."""
    plain = official.SABlock(16, **options)
    ours = copy.deepcopy(plain)
    accelerate(ours)
    return ours, plain, torch.randn(2, 16, 3, 4, 5)


def same(ours: nn.Module, plain: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)


def test_no_own_forward_runs(own_forwards: list[str]) -> None:
    model = official.UniFormer()
    accelerate(model)
    own_forwards.clear()
    model(torch.randn(2, 3, 4, 32, 32)).sum().backward()
    assert own_forwards == []


def test_a_part_that_is_none_is_no_part(own_forwards: list[str]) -> None:
    block = official.SABlock(16)
    block.register_module("absent", None)
    accelerate(block)
    own_forwards.clear()
    block(torch.randn(2, 16, 3, 4, 5))
    assert own_forwards == []


def test_hooks_of_a_block_fire_around_the_fast_forward(own_forwards: list[str]) -> None:
    ours, _, x = block()
    own_forwards.clear()
    fired = []
    ours.register_forward_pre_hook(lambda *_: fired.append("pre"))
    ours.register_forward_hook(lambda *_: fired.append("forward"))
    ours.register_full_backward_hook(lambda *_: fired.append("backward"))
    ours(x.requires_grad_()).sum().backward()
    assert fired == ["pre", "forward", "backward"]
    assert own_forwards == []


HOOKS = {
    "forward": lambda m, fired: m.register_forward_hook(lambda *_: fired.append(1)),
    "forward pre": lambda m, fired: m.register_forward_pre_hook(lambda *_: fired.append(1)),
    "backward": lambda m, fired: m.register_full_backward_hook(lambda *_: fired.append(1)),
    "backward pre": lambda m, fired: m.register_full_backward_pre_hook(lambda *_: fired.append(1)),
}


@pytest.mark.parametrize("path", ["attn", "attn.qkv", "mlp", "mlp.act", "norm2", "pos_embed"])
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_parts_fire(hook: str, path: str, own_forwards: list[str]) -> None:
    ours, plain, x = block()
    fired: list[int] = []
    handle = HOOKS[hook](ours.get_submodule(path), fired)
    ours(x.requires_grad_()).sum().backward()
    assert fired == [1]
    same(ours, plain, x)
    handle.remove()
    own_forwards.clear()
    ours(x)
    assert own_forwards == []


def test_hooks_of_all_modules_fire() -> None:
    ours, _, x = block()
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        ours(x)
    finally:
        hook.remove()
    assert set(ours.modules()) == set(seen)


def test_counters_that_follow_modules_see_them() -> None:
    counts = []
    for model in block()[:2]:
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(2, 16, 3, 4, 5))
        by_module = counter.get_flop_counts()  # whichever operator does it
        counts.append({name: sum(found.values()) for name, found in by_module.items()})
    assert counts[0] == counts[1]
    assert "SABlock.attn.qkv" in counts[0]


def test_adapters_run_and_only_their_block_is_slow(own_forwards: list[str]) -> None:
    model, x = official.UniFormer().eval(), torch.randn(2, 3, 4, 32, 32)
    accelerate(model)
    model.blocks3[0].attn.qkv = LoRA(model.blocks3[0].attn.qkv)
    plain = copy.deepcopy(model)
    restore(plain)
    own_forwards.clear()
    y = model(x)
    assert own_forwards == ["SABlock"]  # its attention and its convolution are still served
    torch.testing.assert_close(y, plain(x), rtol=1e-4, atol=1e-4)
    y.sum().backward()
    assert model.blocks3[0].attn.qkv.a.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hourglass_blocks_of_either_kind_follow_each_other(dtype: torch.dtype) -> None:
    plain, x = light.UniFormerLight().eval().to(dtype), torch.randn(2, 3, 4, 64, 64, dtype=dtype)
    mixed, ours = copy.deepcopy(plain), copy.deepcopy(plain)
    accelerate(mixed)
    accelerate(ours)
    fired = []
    mixed.blocks3[1].norm1.register_forward_hook(lambda *_: fired.append(1))
    torch.testing.assert_close(mixed(x), ours(x), rtol=0.1, atol=0.05)
    assert fired == [1]
    if dtype == torch.float32:  # in bfloat16 the official indices are rounded away
        torch.testing.assert_close(mixed(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", ["conv1", "attn", "pos_embed"])
@pytest.mark.parametrize(
    "apply",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda m: parametrize.register_parametrization(m, "weight", nn.Hardtanh(-0.1, 0.1)),
    ],
    ids=["weight_norm", "spectral_norm", "clamp"],
)
def test_parametrisations_hold(apply: Callable[[nn.Module], object], path: str) -> None:
    plain = official.CBlock(16).eval()
    ours = copy.deepcopy(plain)
    accelerate(ours)
    for model in (ours, plain):
        torch.manual_seed(1)
        apply(model.get_submodule(path).eval())
    x = torch.randn(2, 16, 3, 4, 5)
    same(ours, plain, x)
    restore(ours)
    assert isinstance(ours.get_submodule(path), nn.Conv3d)
    assert torch.equal(ours(x), plain(x))


def test_a_parametrised_block_is_restored() -> None:
    plain = official.CBlock(16, layer_scale=0.5).eval()
    ours = copy.deepcopy(plain)
    accelerate(ours)
    for model in (ours, plain):
        parametrize.register_parametrization(model, "gamma_1", nn.Hardtanh(-0.1, 0.1))
    x = torch.randn(2, 16, 3, 4, 5)
    same(ours, plain, x)
    restore(ours)
    assert torch.equal(ours(x), plain(x))


def test_replaced_forwards_run() -> None:
    ours, _, x = block()
    ours.mlp.forward = lambda x: 0 * x
    z = x + ours.pos_embed(x)
    want = z.flatten(2).mT + ours.attn(ours.norm1(z.flatten(2).mT))
    torch.testing.assert_close(ours(x).flatten(2).mT, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["attn_drop", "proj_drop", "drop"])
def test_active_dropouts_drop(where: str, own_forwards: list[str]) -> None:
    ours, plain, x = block()
    dropout = ours.mlp.drop if where == "drop" else ours.attn.get_submodule(where)
    dropout.p = 1.0
    own_forwards.clear()
    y = ours(x)
    assert own_forwards[0] == "SABlock"
    dropped = ours.pos_embed(x) + x
    z = dropped.flatten(2).mT
    if where == "drop":
        z = z + ours.attn(ours.norm1(z))
    elif where == "attn_drop":
        z = z + ours.attn.proj.bias
    z = z if where == "drop" else z + ours.mlp(ours.norm2(z))
    torch.testing.assert_close(y.flatten(2).mT, z, rtol=1e-4, atol=1e-5)
    same(ours.eval(), plain.eval(), x)


def test_attention_maps_reach_a_hook() -> None:
    ours, plain, x = block()
    found: dict[str, Tensor] = {}
    for name, model in (("ours", ours), ("plain", plain)):
        model.attn.attn_drop.register_forward_hook(
            lambda m, args, y, name=name: found.update({name: y})
        )
        model(x)
    torch.testing.assert_close(found["ours"], found["plain"])


def test_extractors_drop_hidden_channels() -> None:
    dec = v2.Extractor(16, 2, dropout=1.0)
    accelerate(dec)
    query, memory = torch.randn(1, 2, 16), torch.randn(5, 2, 16)
    q = query + dec.attention(dec.ln_1(query), dec.ln_3(memory))
    want = q + dec.mlp.c_proj.bias
    torch.testing.assert_close(dec(query, memory), want, rtol=1e-4, atol=1e-5)


def test_recomputed_layers_run_their_own_forward() -> None:
    layer = v2.ResidualAttentionBlock(16, 2, lmhra=0)
    plain = copy.deepcopy(layer)
    accelerate(layer)
    x = torch.randn(5, 6, 16, requires_grad=True)
    for checkpointed in (False, True):
        want, got = (m(x, 3, use_checkpoint=checkpointed) for m in (plain, layer))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert torch.equal(got, want) == checkpointed


def copies() -> Iterator[tuple[str, Callable[[nn.Module], nn.Module]]]:
    def saved(model: nn.Module) -> nn.Module:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    yield "deepcopy", copy.deepcopy
    yield "pickle", lambda model: pickle.loads(pickle.dumps(model))
    yield "torch.save", saved
    yield "copy of a copy", lambda model: saved(copy.deepcopy(saved(model)))


@pytest.mark.parametrize("copied", [c for _, c in copies()], ids=[n for n, _ in copies()])
def test_copies_are_accelerated_too(
    copied: Callable[[nn.Module], nn.Module], own_forwards: list[str]
) -> None:
    model, x = official.UniFormer().eval(), torch.randn(2, 3, 4, 32, 32)
    want = model(x)
    accelerate(model)
    twin = copied(model)
    own_forwards.clear()
    assert torch.equal(twin(x), model(x))
    assert own_forwards == []
    with torch.no_grad():
        twin.blocks1[0].conv1.weight.zero_()
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)  # nothing is shared
    restore(twin)
    assert type(twin.blocks1[0]) is official.CBlock
    assert type(model.blocks1[0]) is not official.CBlock


def test_classes_and_names_stay() -> None:
    model = official.UniFormer()
    text = repr(model)
    accelerate(model)
    assert repr(model) == text
    assert isinstance(model.blocks1[0], official.CBlock)
    assert type(model.blocks1[0]).__module__ == official.__name__


def test_norms_converted_to_synchronised_ones_are_served(own_forwards: list[str]) -> None:
    model, x = official.UniFormer().eval(), torch.randn(2, 3, 4, 32, 32)
    accelerate(model)
    want = model(x)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    own_forwards.clear()
    torch.testing.assert_close(model(x), want)
    assert own_forwards == []


def test_parameters_swapped_in_for_a_call() -> None:
    ours, plain, x = block()
    state = {name: p + 1 for name, p in plain.named_parameters()}
    got, want = (torch.func.functional_call(m, state, x) for m in (ours, plain))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (official.CBlock, (2, 16, 3, 4, 5)),
        (official.SABlock, (2, 16, 3, 4, 5)),
        (lambda dim: nn.Conv3d(dim, dim, 3, padding=1, groups=dim), (2, 16, 3, 4, 5)),
        (lambda dim: official.PatchEmbed(dim, 24, (1, 2, 2)), (2, 16, 3, 4, 6)),
        (lambda dim: v2.ResidualAttentionBlock(dim, 2), (5, 8, 16)),
        (lambda _: light.UniFormerLight(), (1, 3, 4, 64, 64)),
    ],
    ids=["local", "global", "depthwise", "stem", "V2", "light"],
)
def test_compiles_in_one_graph(
    make: Callable[[int], nn.Module], shape: tuple[int, ...], own_forwards: list[str]
) -> None:
    model = make(16).eval()
    accelerate(model)
    own_forwards.clear()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for x in (torch.randn(shape), torch.randn(shape)):
            torch.testing.assert_close(compiled(x), model(x))
    assert own_forwards == []


@pytest.mark.parametrize("kind", [official.CBlock, official.SABlock])
def test_compiled_gradients(kind: type[nn.Module]) -> None:
    plain, x = kind(16), torch.randn(2, 16, 3, 4, 5)
    ours = copy.deepcopy(plain)
    accelerate(ours)
    torch.compiler.reset()
    torch.compile(ours, fullgraph=True, backend="aot_eager")(x).sum().backward()
    plain(x).sum().backward()
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_compiled_adapters_run() -> None:
    ours, _, x = block()
    ours.attn.qkv = LoRA(ours.attn.qkv)
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), ours(x))


@pytest.mark.parametrize("strict", [False, True])
def test_exports(strict: bool) -> None:
    model = nn.Sequential(official.CBlock(16), official.SABlock(16)).eval()
    x = torch.randn(2, 16, 3, 4, 5)
    with torch.no_grad():
        want = model(x)
        accelerate(model)
        program = torch.export.export(model, (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), want, rtol=1e-4, atol=1e-5)
    assert any("uniformer_kernels" in str(node.target) for node in program.graph.nodes)


def test_restored_models_are_compiled_again(own_forwards: list[str]) -> None:
    ours, _, x = block()
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled(x)
        restore(ours)
        own_forwards.clear()
        compiled(x)
    assert "SABlock" in own_forwards
