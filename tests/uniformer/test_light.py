"""The lightweight models: what is kept, what passes between blocks, and nothing that is shared."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import uniformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from uniformer.layers import HourglassBlock, LocalBlock

from uniformer_kernels import use_backend
from uniformer_kernels.blocks import pool_importance

hourglass = sys.modules["uniformer_kernels.blocks.hourglass_block"]
NAMES = ["uniformer_xxs", "uniformer_video_xxs", "uniformer_dense_xxs"]


def small(name: str, **keywords: Any) -> nn.Module:
    if "dense" not in name:
        keywords = {"num_classes": 7, **keywords}
    model = uniformer.create_model(name, **{"depths": (1, 1, 3, 2), **keywords})
    nn.init.normal_(model.cls_token)
    return model


def picture(name: str, batch: int = 2, size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randn(batch, 3, *((4,) if "video" in name else ()), *size)


def total(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum(output.square().mean() for output in outputs)


def gradients(model: nn.Module, x: Tensor, run: Callable | None = None) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(total((run or model)(x)), parameters, allow_unused=True))


def equal(first: list[Tensor | None], second: list[Tensor | None]) -> bool:
    return all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


@pytest.fixture
def shrinks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, Tensor]]:
    """Tokens there were, tokens kept, and where, of every block that drops some."""
    calls: list[tuple[int, int, Tensor]] = []
    operator = hourglass.token_shrink

    def token_shrink(x: Tensor, importance: Tensor, keep: int, *, prefix: Tensor) -> Any:
        tokens, index = operator(x, importance, keep, prefix=prefix)
        calls.append((x.shape[1], keep, index))
        return tokens, index

    monkeypatch.setattr(hourglass, "token_shrink", token_shrink)
    return calls


# Sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keywords", "size", "parameters", "entries", "giga_macs"),
    [
        ("uniformer_xxs", {}, (128, 128), 10_215_280, 334, 0.425),
        ("uniformer_xxs", {}, (160, 160), 10_215_280, 334, 0.657),
        ("uniformer_xxs", {}, (224, 224), 10_215_280, 334, 1.299),
        ("uniformer_xs", {}, (192, 192), 16_509_264, 384, 1.417),
        ("uniformer_xs", {}, (224, 224), 16_509_264, 384, 1.931),
        ("uniformer_video_xxs", {}, (4, 128, 128), 9_833_896, 334, 1.00),
        ("uniformer_video_xxs", {}, (16, 160, 160), 9_833_896, 334, 6.83),
        ("uniformer_video_xxs", {"layer_scale_init": 0.1}, (8, 128, 128), 9_840_616, 368, 2.02),
        ("uniformer_video_xs", {}, (32, 192, 192), 16_099_552, 384, 33.79),
        ("uniformer_video_xs", {"num_classes": 1000}, (32, 192, 192), 16_715_152, 384, 33.79),
    ],
)
def test_parameters_and_macs(name, keywords, size, parameters, entries, giga_macs) -> None:
    with torch.device("meta"):
        model = uniformer.create_model(name, **keywords).eval()
        x = torch.empty(1, 3, *size)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries
    with use_backend("reference"), FlopCounterMode(display=False) as counter:
        model(x)
    decimals = len(str(giga_macs).split(".")[1])
    assert round(counter.get_total_flops() / 2e9, decimals) == giga_macs


def test_dense_parameters() -> None:
    for name, parameters in {"xxs": 9_317_168, "xs": 15_483_136}.items():
        with torch.device("meta"):
            model = uniformer.create_model(f"uniformer_dense_{name}")
        assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "size", "counts"),
    [
        ("uniformer_xxs", (128, 128), [(64, 32), (16, 8)]),
        ("uniformer_xxs", (160, 160), [(100, 50), (25, 12)]),
        ("uniformer_xxs", (80, 80), [(25, 12), (4, 2)]),
        ("uniformer_xxs", (96, 112), [(42, 21), (9, 4)]),
        ("uniformer_video_xxs", (64, 64), [(32, 16), (8, 4)]),
    ],
)
def test_how_many_are_kept(name, size, counts, shrinks) -> None:
    """On odd maps of 5x5 and 6x7 too."""
    model = small(name).eval()
    x = picture(name, 1, size)
    expected = total(model(x))
    (third, fourth) = counts
    assert [call[:2] for call in shrinks] == [third, third, fourth, fourth]
    with use_backend("reference"):
        torch.testing.assert_close(total(model(x)), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("keep", [1.0, 0.8, 0.6, 0.5, 0.4, 0.25, 0.01])
def test_the_ratios_of_the_paper(keep: float, shrinks) -> None:
    model = small("uniformer_xxs", keep=keep)
    x = picture("uniformer_xxs", 2, (128, 128))
    for mode in (True, False):
        shrinks.clear()
        assert all(g is None or g.isfinite().all() for g in gradients(model.train(mode), x))
        kept = [call[1] for call in shrinks]
        third, fourth = int(64 * keep), int(16 * keep)
        assert kept == ([] if keep == 1 else [third, third, fourth, fourth])


@pytest.mark.parametrize("keep", [0, -0.5, 1.01, math.nan])
def test_a_ratio_outside(keep: float) -> None:
    with pytest.raises(ValueError, match="keep: expected 0 < keep <= 1, got"):
        small("uniformer_xxs", keep=keep)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (32, 64), (64, 32), (29, 29)])
def test_tiny_grids(name: str, size: tuple[int, int]) -> None:
    """One or two tokens in stage 4: none or one is kept, and one is its own representative."""
    model = small(name)
    x = picture(name, 3, size)
    for mode in (True, False):
        assert total(model.train(mode)(x)).isfinite()
        assert all(g is None or g.isfinite().all() for g in gradients(model, x))


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_that_is_too_small(name: str) -> None:
    with pytest.raises(ValueError, match=r"x: expected .*H >= 29, W >= 29\], got .*16, 16\]"):
        small(name)(picture(name, 1, (16, 16)))


# Selection ---------------------------------------------------------------------------------------


def test_tokens_that_are_all_alike(shrinks) -> None:
    """Of equal importances the lower indices are kept, on every backend."""
    model = small("uniformer_xxs").eval()
    for backend in ("reference", "cpu"):
        shrinks.clear()
        block = model.blocks3[1]
        x = torch.randn(1, 1, 1, 1, 224).expand(2, 1, 6, 7, 224)
        with use_backend(backend), torch.no_grad():
            block(x, torch.randn(2, 1, 224), torch.full((2, 42), 0.02))
        assert torch.equal(shrinks[0][2], torch.arange(21).expand(2, 21))


@pytest.mark.parametrize(("dtype", "grid"), [(torch.bfloat16, 20), (torch.float16, 48)], ids=str)
def test_the_right_tokens_change_where_the_dtype_cannot_count(dtype, grid, shrinks) -> None:
    """400 tokens in bfloat16, 2304 in float16: all are still where they were.

    Without anything but attention a dropped token moves by the representative's residual, so
    all by the same, and a kept one by its own.
    """
    block = small("uniformer_xxs").blocks3[1].to(dtype).eval()
    for parameter in (block.pos_embed.weight, block.pos_embed.bias):
        nn.init.zeros_(parameter)
    N = grid * grid
    x = torch.randn(1, 1, grid, grid, 224, dtype=dtype)
    importance = torch.rand(1, N).softmax(1)
    with torch.no_grad():
        y, _, updated = block(x, torch.randn(1, 1, 224, dtype=dtype), importance)
        exact, _, _ = copy.deepcopy(block).double()(
            x.double(), torch.zeros(1, 1, 224, dtype=torch.float64), importance.double()
        )
    index = shrinks[0][2]
    assert torch.equal(index, importance.topk(N // 2).indices.sort().values)
    dropped = torch.ones(1, N, dtype=torch.bool).scatter(1, index, False)
    assert torch.equal(updated[dropped], importance[dropped])
    assert (updated != importance)[~dropped].float().mean() > 0.99
    assert (y - x).double().norm() > 0
    assert (y.double() - exact).norm() < 0.05 * exact.norm()


def test_a_set_without_importance_stays_finite() -> None:
    block = small("uniformer_xxs").blocks3[1]
    x, importance = torch.randn(2, 1, 4, 4, 224), torch.zeros(2, 16).requires_grad_()
    outputs = block(x, torch.randn(2, 1, 224), importance)
    assert all(output.isfinite().all() for output in outputs)
    assert torch.autograd.grad(total(outputs), importance)[0].isfinite().all()


def test_pooling_keeps_the_sum() -> None:
    importance = torch.rand(2, 2 * 5 * 7)
    pooled = pool_importance(importance, (2, 5, 7))
    assert pooled.shape == (2, 2 * 2 * 3)
    torch.testing.assert_close(pooled.sum(1), importance.sum(1))
    even = torch.rand(1, 16)
    want = even.view(2, 2, 2, 2).sum((1, 3)).flatten()[None]
    torch.testing.assert_close(pool_importance(even, (1, 4, 4)), want)
    assert not pool_importance(torch.zeros(1, 16), (1, 4, 4)).any()


@pytest.mark.parametrize("keywords", [{"score": "mean"}, {"running_mean": False}], ids=str)
def test_ablations(keywords: dict[str, Any], shrinks) -> None:
    """The same weights, the first choice by other numbers, and all learn."""
    model, other = small("uniformer_xxs").eval(), small("uniformer_xxs", **keywords).eval()
    other.load_state_dict(model.state_dict())
    x = picture("uniformer_xxs", 4, (128, 128))
    with torch.no_grad():
        assert not torch.equal(model(x), other(x))
    assert all(g is None or g.isfinite().all() for g in gradients(other.train(), x))
    with pytest.raises(ValueError, match="score: expected 'token' or 'mean', got 'max'"):
        small("uniformer_xxs", score="max")


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_the_importance_a_block_returns(keep: float) -> None:
    """Kept tokens: the mean of old and new, or the new one; others: the old one."""
    x, score_token, old = torch.randn(2, 1, 4, 5, 224), torch.randn(2, 1, 224), torch.rand(2, 20)
    block = small("uniformer_xxs", keep=keep).blocks3[1]
    with torch.no_grad():
        averaged = block(x, score_token, old)[2]
        block.running_mean = False
        fresh = block(x, score_token, old)[2]
        torch.testing.assert_close(averaged, (old + fresh) / 2)
        kept = int(20 * keep)
        assert ((fresh == old).sum(1) == 20 - kept).all()
        assert ((fresh != old).sum(1) == kept).all()
        if keep == 1:
            torch.testing.assert_close(block(x, score_token, None)[2], fresh)


@pytest.mark.parametrize("tokens", [2, 3, 5])
@pytest.mark.parametrize("running_mean", [True, False])
def test_importance_and_its_gradient_as_of_the_reference(tokens: int, running_mean: bool) -> None:
    """Of two tokens one is kept, and the other is its own representative."""
    block = small("uniformer_xxs", running_mean=running_mean).blocks3[1]
    x, score_token = torch.randn(2, 1, 1, tokens, 224), torch.randn(2, 1, 224)
    old = torch.rand(2, tokens).requires_grad_()
    results = []
    for backend in ("reference", "cpu"):
        with use_backend(backend):
            _, _, new = block(x, score_token, old)
            qkv = block.attn["qkv"].weight
            gradients = torch.autograd.grad(new.square().sum(), (old, qkv))
        changed = (new != old).sum(1).tolist()
        assert changed == [2 if tokens == 2 else tokens // 2] * 2
        results.append((new.detach(), *gradients))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_scores_learn_through_the_merge() -> None:
    """The importance of the dropped tokens, which weighs them; that of the kept ones does not."""
    block = small("uniformer_xxs").blocks3[1]
    importance = torch.rand(2, 16).requires_grad_()
    y, _, _ = block(torch.randn(2, 1, 4, 4, 224), torch.randn(2, 1, 224), importance)
    (gradient,) = torch.autograd.grad(y.square().mean(), importance)
    kept = importance.topk(8).indices
    assert not gradient.gather(1, kept).any()
    assert (gradient != 0).sum(1).tolist() == [8, 8]


# State -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
class TestEveryKind:
    def test_two_models_interleaved(self, name: str) -> None:
        """Block by block of one, then the other: neither meets the other's importance."""
        models = [small(name).eval() for _ in range(2)]
        x = picture(name)
        expected = [gradients(model, x) for model in models]
        losses = [total(model(x)) for model in models]  # both forwards, then both backwards
        for model, loss, want in zip(models, losses, expected, strict=True):
            got = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            assert equal(list(got), want)

    def test_two_threads(self, name: str) -> None:
        torch.set_num_threads(1)
        model = small(name).eval()
        inputs = [picture(name, 1, (64, 64 + 32 * (i % 3))) for i in range(8)]
        with ThreadPoolExecutor(2) as pool:
            at_once = list(pool.map(lambda x: gradients(model, x), inputs))
        for x, got in zip(inputs, at_once, strict=True):
            assert equal(got, gradients(model, x))

    @pytest.mark.parametrize("mode", [True, False])
    def test_activation_checkpointing(self, name: str, mode: bool) -> None:
        model = small(name, drop_path_rate=0.3).train(mode)
        x = picture(name)
        torch.manual_seed(3)
        expected = gradients(model, x)
        for stage in (model.blocks3, model.blocks4):
            for block in stage:
                forward = block.forward
                block.forward = lambda *state, forward=forward: checkpoint(
                    forward, *state, use_reentrant=False
                )
        torch.manual_seed(3)
        for got, want in zip(gradients(model, x), expected, strict=True):
            torch.testing.assert_close(got, want)

    def test_recomputed_stages(self, name: str) -> None:
        model = small(name)
        x = picture(name)
        expected = gradients(model, x)
        for number in range(1, 5):
            stage = model.get_submodule(f"blocks{number}")
            stage.recomputed = len(stage)
        for got, want in zip(gradients(model, x), expected, strict=True):
            torch.testing.assert_close(got, want)

    def test_backward_in_evaluation(self, name: str) -> None:
        model = small(name).eval()
        x = picture(name).requires_grad_()
        (gradient,) = torch.autograd.grad(total(model(x)), x)
        assert gradient.isfinite().all()
        assert gradient.any()

    def test_training_and_evaluation_agree(self, name: str) -> None:
        """With the norms by their running statistics, bit by bit."""
        model = small(name)
        x = picture(name)
        with torch.no_grad():
            model.train()(x)
            evaluated = model.eval()(x)
            model.train()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
            trained = model(x)
        if isinstance(evaluated, Tensor):
            assert torch.equal(trained[0], evaluated)
            assert trained[1].shape == (2, 7)
        else:
            assert all(torch.equal(a, b) for a, b in zip(trained, evaluated, strict=True))

    def test_a_sample_does_not_depend_on_its_batch(self, name: str) -> None:
        model = small(name).eval()
        x = picture(name, 3)
        with torch.no_grad():
            together = model(x)
            alone = model(x[1:2])
        pairs = zip(together, alone, strict=True) if "dense" in name else [(together, alone)]
        for many, one in pairs:
            torch.testing.assert_close(many[1:2], one, rtol=1e-4, atol=1e-5)

    def test_no_samples(self, name: str) -> None:
        with torch.no_grad():
            y = small(name).eval()(picture(name, 0))
        assert (y[0] if isinstance(y, tuple) else y).shape[0] == 0

    def test_reduced_precision_stays_close(self, name: str) -> None:
        """With every token kept: a choice between nearly equal ones may fall either way."""
        model = small(name, keep=1.0)
        x = picture(name, 4)
        with torch.no_grad():
            for _ in range(2):
                model(x)
            expected = total(model.eval()(x))
            with torch.autocast("cpu", torch.bfloat16):
                cast = total(model(x))
            half = total(model.bfloat16()(x.bfloat16()))
        for y in (cast, half):
            assert abs(y - expected) < 0.1 * expected

    def test_autocast_trains(self, name: str) -> None:
        model = small(name, drop_path_rate=0.2)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(picture(name, 8))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        total(tuple(output.float() for output in outputs)).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key


# Construction ------------------------------------------------------------------------------------


def test_the_pair_of_classifiers() -> None:
    model = small("uniformer_xxs")
    logits, others = model(picture("uniformer_xxs"))
    assert logits.shape == others.shape == (2, 7)
    assert model.eval()(picture("uniformer_xxs")).shape == (2, 7)
    features = model.forward_features(picture("uniformer_xxs"))
    assert features.shape == (2, 1, 2, 3, 448)
    bare = small("uniformer_xxs", num_classes=0)
    assert [y.shape for y in bare(picture("uniformer_xxs"))] == [(2, 448)] * 2


def test_a_list_of_one_pathway_is_the_clip() -> None:
    model, x = small("uniformer_video_xxs").eval(), picture("uniformer_video_xxs")
    with torch.no_grad():
        assert torch.equal(model([x]), model(x))
    with pytest.raises(ValueError, match="x: expected one pathway, got 2"):
        model([x, x])


def test_initialisation() -> None:
    model = uniformer.create_model("uniformer_video_xs", layer_scale_init=0.3)
    assert not model.cls_token.any()
    gammas = [p for key, p in model.named_parameters() if "gamma" in key]
    assert len(gammas) == 2 * 20
    assert all(torch.equal(g, torch.full_like(g, 0.3)) for g in gammas)
    assert [block.num_heads for block in (model.blocks3[0], model.blocks4[0])] == [8, 16]
    for key, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-6 if key.startswith("blocks") else 1e-5), key


def test_drop_path_rises_evenly_over_all_blocks() -> None:
    with torch.device("meta"):
        model = uniformer.create_model("uniformer_xxs", drop_path_rate=0.3)
    rates = [m.drop_path for m in model.modules() if isinstance(m, (LocalBlock, HourglassBlock))]
    assert rates == pytest.approx(torch.linspace(0, 0.3, 17).tolist())


def test_drop_path_leaves_the_fast_update_alone() -> None:
    """A sample that loses both branches: dropped tokens still move, kept ones do not."""
    block = small("uniformer_xxs").blocks3[1]
    for parameter in (block.pos_embed.weight, block.pos_embed.bias):
        nn.init.zeros_(parameter)
    block.drop_path = 1 - 1e-7
    x, importance = torch.randn(1, 1, 4, 4, 224), torch.rand(1, 16)
    y, _, _ = block(x, torch.randn(1, 1, 224), importance)
    change = (y - x).detach().abs().amax(-1).flatten()
    kept = importance.topk(8).indices
    assert not change[kept].any()
    assert (change > 0).sum() == 8


def test_only_the_keywords_there_are() -> None:
    for keyword in ("layer_scale", "axes", "stage_norm", "before_blocks", "layer_scale_init"):
        with pytest.raises(TypeError, match=f"uniformer_xxs takes no {keyword}; it takes .*keep"):
            uniformer.create_model("uniformer_xxs", **{keyword: 1})


# Dense prediction --------------------------------------------------------------------------------


def test_dense_maps() -> None:
    model = small("uniformer_dense_xxs").eval()
    x = picture("uniformer_dense_xxs", 2, (64, 96))
    maps = model(x)
    assert [tuple(y.shape[1:]) for y in maps] == [
        (56, 16, 24),
        (112, 8, 12),
        (224, 4, 6),
        (448, 2, 3),
    ]
    assert all(y.is_contiguous() for y in maps)
    chosen = small("uniformer_dense_xxs", out_indices=[3, 1]).eval()
    chosen.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(chosen(x), (maps[3], maps[1]), strict=True))
    for indices in ([], [4], [0, -1]):
        with pytest.raises(ValueError, match="out_indices: expected some of 0, 1, 2, 3, got"):
            small("uniformer_dense_xxs", out_indices=indices)


def test_norm_eval_keeps_the_statistics() -> None:
    model = small("uniformer_dense_xxs", norm_eval=True)
    assert model.training
    before = {key: b.clone() for key, b in model.named_buffers()}
    model(picture("uniformer_dense_xxs"))
    assert model.train() is model
    model(picture("uniformer_dense_xxs"))
    assert all(torch.equal(b, before[key]) for key, b in model.named_buffers())
