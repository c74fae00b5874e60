"""UniFormerV2 beyond the golden figures: sizes, inputs, first values, fusion, stochastic depth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import uniformer
from torch import Tensor, nn
from uniformer.layers.v2 import GlobalUniBlock, LocalUniBlock
from uniformer.models import UniFormerV2

from .macs import official_macs

TINY = {
    "dim": 48,
    "depth": 3,
    "num_heads": 3,
    "patch_size": 8,
    "resolution": 24,
    "num_frames": 4,
    "return_layers": (0, 2),
    "num_classes": 7,
}
SSV2 = {"temporal_downsample": True, "num_classes": 174}
KINETICS = {"local_mhra": "none"}
CLIP = (2, 3, 4, 24, 24)


def on_meta(name: str, **keywords: Any) -> nn.Module:
    """The model without memory or arithmetic: shapes only."""
    with torch.device("meta"):
        return uniformer.create_model(name, **keywords).eval()


def tiny(*, randomised: bool = True, **keywords: Any) -> UniFormerV2:
    """A small model; no parameter is 0 or 1 when ``randomised``."""
    model = UniFormerV2(**{**TINY, **keywords})
    for parameter in model.parameters() if randomised else ():
        nn.init.normal_(parameter, 0.1, 0.3)
    return model


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


# Sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keywords", "parameters"),
    [
        ("uniformerv2_b16", KINETICS, 114_552_208),
        ("uniformerv2_l14", KINETICS, 354_099_600),
        ("uniformerv2_l14_336", KINETICS, 354_427_280),
        ("uniformerv2_l14_336", {**KINETICS, "frozen": True}, 354_426_256),
        ("uniformerv2_b16", {**SSV2, "return_layers": range(4, 12)}, 162_992_814),
        ("uniformerv2_l14", {**SSV2, "return_layers": range(8, 24)}, 573_949_966),
    ],
)
def test_parameters(name: str, keywords: dict[str, Any], parameters: int) -> None:
    assert sum(p.numel() for p in on_meta(name, **keywords).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "keywords", "frames", "giga_macs"),
    [
        ("uniformerv2_b16", KINETICS, 8, 148.1),
        ("uniformerv2_l14", KINETICS, 8, 665.6),
        ("uniformerv2_l14", KINETICS, 16, 1331),
        ("uniformerv2_l14", KINETICS, 32, 2662),
        ("uniformerv2_l14_336", KINETICS, 8, 1567),
        ("uniformerv2_l14_336", KINETICS, 32, 6268),
        ("uniformerv2_l14_336", KINETICS, 64, 12536),
        ("uniformerv2_b16", {**SSV2, "return_layers": range(4, 12)}, 16, 187),
        ("uniformerv2_b16", {**SSV2, "return_layers": range(4, 12)}, 32, 374),
        ("uniformerv2_l14", {**SSV2, "return_layers": range(8, 24)}, 16, 858),
        ("uniformerv2_l14", {**SSV2, "return_layers": range(8, 24)}, 32, 1716),
    ],
)
def test_macs(name: str, keywords: dict[str, Any], frames: int, giga_macs: float) -> None:
    model = on_meta(name, num_frames=frames, **keywords)
    macs = official_macs(model, torch.empty(1, *model.clip_shape, device="meta"))
    assert round(macs / 1e9, 1 if isinstance(giga_macs, float) else 0) == giga_macs


def test_the_last_four_layers_return_by_default() -> None:
    assert on_meta("uniformerv2_b16").transformer.return_layers == (8, 9, 10, 11)
    assert on_meta("uniformerv2_l14").transformer.return_layers == (20, 21, 22, 23)


@pytest.mark.parametrize(
    ("local_mhra", "numbers"), [("none", ()), ("single", (1,)), ("double", (1, 2))]
)
def test_local_mhra(local_mhra: str, numbers: tuple[int, ...]) -> None:
    model = tiny(local_mhra=local_mhra)
    prefixes = {key.split(".")[3] for key in model.state_dict() if "resblocks.0." in key}
    assert {p for p in prefixes if p.startswith("lmhra")} == {f"lmhra{n}" for n in numbers}
    for number in numbers:
        keys = [k for k in model.state_dict() if f"resblocks.1.lmhra{number}." in k]
        assert len(keys) == 11


@pytest.mark.parametrize(("name", "reduced"), [("uniformerv2_b16", 512), ("uniformerv2_l14", 682)])
def test_reduction_is_a_floor(name: str, reduced: int) -> None:
    block = on_meta(name).transformer.resblocks[0]
    assert block.lmhra1.pos_embed[2].weight.shape == (reduced, 1, 3, 1, 1)


# Meaning -----------------------------------------------------------------------------------------


def plainly(model: UniFormerV2, x: Tensor) -> Tensor:
    """The model as the paper writes it: every token sequence of its own, every module called."""
    B = x.shape[0]
    p = model.conv1(x)
    _, C, T, H, W = p.shape
    p = p.permute(0, 2, 3, 4, 1).reshape(B, T, H * W, C)
    x = torch.cat([model.class_embedding.expand(B, T, 1, C), p], 2) + model.positional_embedding
    x = model.ln_pre(x)
    transformer = model.transformer

    def to_map(x: Tensor) -> Tensor:
        return x[:, :, 1:].reshape(B, T, H, W, C).permute(0, 4, 1, 2, 3)

    def to_tokens(x: Tensor, patches: Tensor) -> Tensor:
        patches = patches.permute(0, 2, 3, 4, 1).reshape(B, T, H * W, C)
        return torch.cat([x[:, :, :1], patches], 2)

    def mlp(m: nn.ModuleDict, x: Tensor) -> Tensor:
        h = m["c_fc"](x)
        return m["c_proj"](h * torch.sigmoid(1.702 * h))

    query = transformer.temporal_cls_token.expand(B, 1, C)
    gathered = iter(zip(transformer.dpe, transformer.dec, strict=True))
    for index, block in enumerate(transformer.resblocks):
        for lmhra, branch in ((block.lmhra1, "attention"), (block.lmhra2, "mlp")):
            if lmhra is not None:
                x = to_tokens(x, to_map(x) + lmhra.pos_embed(to_map(x)))
            if branch == "mlp":
                x = x + mlp(block.mlp, block.ln_2(x))
            else:
                frames = block.ln_1(x).flatten(0, 1).transpose(0, 1)
                a, _ = block.attn(frames, frames, frames)
                x = x + a.transpose(0, 1).reshape(x.shape)
        if index in transformer.return_layers:
            dpe, dec = next(gathered)
            y = dec.ln_3(to_tokens(x, to_map(x) + dpe(to_map(x))).flatten(1, 2)).transpose(0, 1)
            a, _ = dec.attn(dec.ln_1(query).transpose(0, 1), y, y)
            query = query + a.transpose(0, 1)
            query = query + mlp(dec.mlp, dec.ln_2(query))
    w = transformer.balance.sigmoid()
    return transformer.proj((1 - w) * query[:, 0] + w * x[:, :, 0].mean(1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("local_mhra", ["none", "single", "double"])
@pytest.mark.parametrize("temporal_downsample", [False, True])
def test_equals_the_paper(
    temporal_downsample: bool, local_mhra: str, training: bool, backend: str
) -> None:
    keywords = {"temporal_downsample": temporal_downsample, "local_mhra": local_mhra}
    model = tiny(**keywords, dropout=0.0).double().train(training)
    x = torch.randn(CLIP, dtype=torch.float64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    y = model(x)
    after = {key: value.clone() for key, value in model.named_buffers()}
    gradients = torch.autograd.grad(y.square().sum(), [*model.parameters()])
    model.load_state_dict(state)
    want = plainly(model, x)
    torch.testing.assert_close(y, want, rtol=1e-9, atol=1e-9)
    for got, expected in zip(
        gradients, torch.autograd.grad(want.square().sum(), [*model.parameters()]), strict=True
    ):
        assert (got - expected).norm() <= 1e-9 * expected.norm() + 1e-12
    for key, value in model.named_buffers():
        torch.testing.assert_close(after[key], value)


@pytest.mark.parametrize("keywords", [{}, {"temporal_downsample": True}, {"local_mhra": "single"}])
def test_at_the_start_it_is_the_image_transformer(keywords: dict[str, Any], backend: str) -> None:
    """Neither aggregators nor global blocks add anything; half of the mean class token is left."""
    torch.manual_seed(1)
    model = tiny(randomised=False, **keywords).double().eval()
    x = torch.randn(CLIP, dtype=torch.float64)
    p = model.conv1(x).flatten(3).permute(0, 2, 3, 1)
    classes = model.class_embedding.expand(*p.shape[:2], 1, -1)
    z = model.ln_pre(torch.cat([classes, p], 2) + model.positional_embedding).flatten(0, 1)
    for block in model.transformer.resblocks:
        h = block.ln_1(z).transpose(0, 1)
        z = z + block.attn(h, h, h)[0].transpose(0, 1)
        h = block.mlp.c_fc(block.ln_2(z))
        z = z + block.mlp.c_proj(h * torch.sigmoid(1.702 * h))
    half = 0.5 * z[:, 0].unflatten(0, p.shape[:2]).mean(1)
    torch.testing.assert_close(logits_of(model, x), model.transformer.proj(half))


def test_initialisation() -> None:
    model = uniformer.create_model("uniformerv2_b16", local_mhra="single")
    transformer = model.transformer
    for name in ("class_embedding", "positional_embedding"):
        embedding = getattr(model, name)
        assert embedding.std().item() == pytest.approx(768**-0.5, rel=0.15), name
    for zero in (transformer.temporal_cls_token, transformer.balance):
        assert not zero.any()
    for block in transformer.resblocks:
        last = block.lmhra1.pos_embed[3]
        assert not last.weight.any()
        assert not last.bias.any()
    for dpe, dec in zip(transformer.dpe, transformer.dec, strict=True):
        assert dpe.weight.any()
        assert not dpe.bias.any()
        for layer in (dec.attn.out_proj, dec.mlp.c_proj):
            assert not layer.weight.any()
            assert not layer.bias.any()
        for weight in (dec.attn.in_proj_weight, dec.mlp.c_fc.weight):  # Xavier, uniform
            bound = math.sqrt(6 / sum(weight.shape))
            assert 0.99 * bound < weight.abs().max() <= bound
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


# Inputs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 8, 24, 24),  # another number of frames, more
        (4, 3, 2, 24, 24),  # and fewer: never another batch size
        (2, 3, 4, 24, 32),
        (2, 3, 4, 32, 24),
        (2, 3, 4, 32, 32),
        (2, 1, 4, 24, 24),
        (3, 4, 24, 24),
    ],
    ids=str,
)
def test_a_clip_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    message = (
        r"UniFormerV2: x: expected \[B, 3, 4, 24, 24\] "
        rf"\(in_chans=3, num_frames=4, resolution=24\), got \[{', '.join(map(str, shape))}\]"
    )
    with pytest.raises(ValueError, match=message):
        tiny()(torch.zeros(shape))


def test_a_list_of_one_pathway_is_the_clip() -> None:
    model = tiny().eval()
    x = torch.randn(CLIP)
    expected = logits_of(model, x)
    assert torch.equal(logits_of(model, [x]), expected)
    assert torch.equal(logits_of(model, (x,)), expected)
    with pytest.raises(ValueError, match="x: expected one pathway, got 2"):
        model([x, x])


def test_only_floating_tensors() -> None:
    with pytest.raises(TypeError, match=r"x: expected a floating-point tensor, got torch.uint8"):
        tiny()(torch.zeros(CLIP, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"local_mhra": "triple"}, "local_mhra: expected 'none' or 'single' or 'double'"),
        ({"fusion": "late"}, "fusion: expected 'sequential' or .*got 'late'"),
        ({"return_layers": ()}, r"return_layers: expected .* at least one, got \[\]"),
        ({"return_layers": (1, 0)}, r"return_layers: expected rising .*got \[1, 0\]"),
        ({"return_layers": (1, 1)}, r"return_layers: expected rising .*got \[1, 1\]"),
        ({"return_layers": (2, 3)}, r"return_layers: .*from 0 to 2.*got \[2, 3\]"),
        ({"return_layers": (-1,)}, r"return_layers: .*from 0 to 2.*got \[-1\]"),
        ({"num_frames": 0}, "num_frames: expected at least 1 frame, got 0"),
        (
            {"num_frames": 5, "temporal_downsample": True},
            "num_frames: expected an even number of frames, got 5",
        ),
        ({"resolution": 28}, "resolution: expected a multiple of the patch size 8, got 28"),
        ({"dw_reduction": 0}, "dw_reduction: expected 0 < factor <= 48, got 0"),
        ({"dropout": 1.0}, "dropout: expected 0 <= rate < 1, got 1.0"),
        ({"drop_path_rate": math.nan}, "drop_path_rate: expected 0 <= rate < 1, got nan"),
        ({"backbone_drop_path_rate": -0.1}, "backbone_drop_path_rate: expected 0 <= rate < 1"),
    ],
    ids=str,
)
def test_keywords_that_do_not_fit(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**keywords)


def test_samples_do_not_meet_in_evaluation() -> None:
    model = tiny().eval()
    x = torch.randn(3, *CLIP[1:])
    expected = logits_of(model, x)
    x[1, 0, 2, 5, 5] = math.nan
    y = logits_of(model, x)
    assert y[1].isnan().all()
    torch.testing.assert_close(y[[0, 2]], expected[[0, 2]])
    assert logits_of(model, x[:0]).shape == (0, 7)


def test_other_channels_and_no_head() -> None:
    model = tiny(in_chans=1, num_classes=0, resolution=32).eval()
    x = torch.randn(2, 1, 4, 32, 32)
    with torch.no_grad():
        features = model.forward_features(x)
    assert features.shape == (2, 48)
    norm = model.transformer.proj[0]
    assert torch.equal(logits_of(model, x), F.layer_norm(features, [48], norm.weight, norm.bias))


def test_autocast_and_half_precision_stay_close() -> None:
    model = tiny(randomised=False)
    for block in model.transformer.dec:  # so that the video token is not 0
        nn.init.normal_(block.attn.out_proj.weight, std=0.1)
    x = torch.randn(CLIP)
    expected = logits_of(model.eval(), x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = logits_of(model, x)
    half = logits_of(model.bfloat16(), x.bfloat16())
    for y in (cast, half):
        assert y.dtype == torch.bfloat16
        assert (y - expected).norm() < 0.05 * expected.norm()


# Fusion and freezing -----------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["sequential", "parallel", "hierarchical_kv", "hierarchical_q"])
@pytest.mark.parametrize("return_layers", [(2,), (0, 1, 2)], ids=str)
def test_fusion(fusion: str, return_layers: tuple[int, ...], backend: str) -> None:
    """The experimental ones: a shape, and something for every parameter to learn."""
    model = tiny(fusion=fusion, return_layers=return_layers)
    queries = 1 if fusion == "sequential" else len(return_layers)
    assert model.transformer.temporal_cls_token.shape == (queries, 1, 48)
    y = model(torch.randn(CLIP))
    assert y.shape == (2, 7)
    y.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def test_frozen() -> None:
    """Only the global blocks and the classifier learn; the class tokens are not mixed in."""
    model = tiny(frozen=True, local_mhra="single")
    assert "transformer.balance" not in model.state_dict()
    learning = {key for key, p in model.named_parameters() if p.requires_grad}
    parts = ("temporal_cls_token", "dpe.", "dec.", "proj.")
    assert learning == {
        key
        for key, _ in model.named_parameters()
        if key.startswith(tuple(f"transformer.{part}" for part in parts))
    }
    model(torch.randn(CLIP)).square().sum().backward()
    assert {key for key, p in model.named_parameters() if p.grad is not None} == learning
    assert model.get_buffer("transformer.resblocks.0.lmhra1.pos_embed.0.running_mean").any()


def test_frozen_parameters_of_the_largest_model() -> None:
    model = on_meta("uniformerv2_l14_336", frozen=True, **KINETICS)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 50_920_848


# Dropout and stochastic depth --------------------------------------------------------------------


def test_rates_rise_evenly() -> None:
    model = on_meta("uniformerv2_b16", backbone_drop_path_rate=0.2, drop_path_rate=0.4, dropout=0.3)
    local = [m.drop_path for m in model.modules() if isinstance(m, LocalUniBlock)]
    assert local == pytest.approx(torch.linspace(0, 0.2, 12).tolist())
    blocks = [m for m in model.modules() if isinstance(m, GlobalUniBlock)]
    assert [m.drop_path for m in blocks] == pytest.approx(torch.linspace(0, 0.4, 4).tolist())
    assert {m.mlp.dropout for m in blocks} == {model.transformer.proj[1].p} == {0.3}


@pytest.fixture
def masks() -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the draws while the test runs."""
    shapes: list[tuple[int, ...]] = []
    draw = Tensor.bernoulli_

    def recorded(tensor: Tensor, *args: Any) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return draw(tensor, *args)

    with mock.patch.object(Tensor, "bernoulli_", recorded):
        yield shapes


def test_drop_path_draws_as_the_official_model(masks: list[tuple[int, ...]]) -> None:
    """Aggregators by sample, the transformer by token position, global blocks for the batch."""
    rates = {"backbone_drop_path_rate": 0.5, "drop_path_rate": 0.5}
    tiny(**rates, depth=2, return_layers=(0, 1))(torch.randn(CLIP))
    by_sample, by_position, by_batch = (2, 1, 1, 1), (1, 1, 10, 1), (1, 1, 1)
    assert masks == [by_sample, by_position, by_sample, by_position, by_batch, by_batch]


def test_dropout_and_drop_path_are_for_training() -> None:
    x = torch.randn(CLIP)
    for keywords in ({"dropout": 0.5}, {"drop_path_rate": 0.9}, {"backbone_drop_path_rate": 0.9}):
        model = tiny(**{"dropout": 0.0, **keywords}, local_mhra="none")
        assert not torch.equal(logits_of(model, x), logits_of(model, x)), keywords
        model.eval()
        assert torch.equal(logits_of(model, x), logits_of(model, x))


def test_statistics_are_of_the_patches_alone() -> None:
    model = tiny(local_mhra="single", depth=1, return_layers=(0,))
    norm = model.transformer.resblocks[0].lmhra1.pos_embed[0]
    x, means = torch.randn(CLIP), []
    for _ in range(2):
        norm.reset_running_stats()
        model(x)
        means.append(norm.running_mean.clone())
        with torch.no_grad():
            model.class_embedding.mul_(-5)
    assert means[0].any()
    assert torch.equal(*means)
