"""The models beyond the golden figures: sizes, inputs, initialisation, stochastic depth."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import uniformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from uniformer.layers import DividedBlock, GlobalBlock, LocalBlock

from uniformer_kernels import use_backend

DEPTHS = {"depths": (1, 1, 2, 1)}
"""A model as deep as most tests need."""


def on_meta(name: str, **keywords: Any) -> nn.Module:
    """The model without memory or arithmetic: shapes only."""
    with torch.device("meta"):
        return uniformer.create_model(name, **keywords).eval()


def small(name: str, **keywords: Any) -> nn.Module:
    return uniformer.create_model(name, **{**DEPTHS, "num_classes": 7, **keywords})


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


# Sizes -------------------------------------------------------------------------------------------

IMAGE = (1, 3, 224, 224)
CLIP = (1, 3, 16, 224, 224)


@pytest.mark.parametrize(
    ("name", "keywords", "size", "parameters", "entries", "giga_macs"),
    [
        ("uniformer_small", {}, IMAGE, 21_545_256, 331, 3.63),
        ("uniformer_small_plus", {}, IMAGE, 24_032_552, 386, 4.20),
        ("uniformer_small_plus_dim64", {}, IMAGE, 24_032_552, 386, 4.20),
        ("uniformer_base", {}, IMAGE, 49_776_552, 687, 8.25),
        ("uniformer_base_ls", {}, IMAGE, 49_796_520, 741, 8.25),
        ("uniformer_video_small", {}, (1, 3, 8, 224, 224), 21_400_400, 331, 17.57),
        ("uniformer_video_small", {}, CLIP, 21_400_400, 331, 41.66),
        ("uniformer_video_small", {}, (1, 3, 32, 224, 224), 21_400_400, 331, 109.45),
        ("uniformer_video_base", {}, CLIP, 49_813_200, 687, 96.55),
        ("uniformer_video_small", {"temporal_patch": True}, CLIP, 23_104_336, 331, 43.1),
        ("uniformer_video_base", {"temporal_patch": True}, CLIP, 51_517_136, 687, 98.0),
        ("uniformer_video_small", {"attention": "divided"}, CLIP, 27_847_504, 397, 36.68),
        ("uniformer_video_base", {"attention": "divided"}, CLIP, 65_405_136, 849, 83.96),
    ],
)
def test_parameters_and_macs(
    name: str,
    keywords: dict[str, Any],
    size: tuple[int, ...],
    parameters: int,
    entries: int,
    giga_macs: float,
) -> None:
    model = on_meta(name, **keywords)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries
    with use_backend("reference"), FlopCounterMode(display=False) as counter:
        model(torch.empty(size, device="meta"))
    decimals = len(str(giga_macs).split(".")[1])
    assert round(counter.get_total_flops() / 2e9, decimals) == giga_macs


@pytest.mark.parametrize(("frames", "steps"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (16, 8)])
@pytest.mark.parametrize("temporal_patch", [False, True])
def test_time_is_halved_once(frames: int, steps: int, temporal_patch: bool) -> None:
    model = on_meta("uniformer_video_small", temporal_patch=temporal_patch)
    x = torch.empty(2, 3, frames, 64, 96, device="meta")
    with use_backend("reference"):
        assert model.forward_features(x).shape == (2, steps, 2, 3, 512)
        assert model(x).shape == (2, 400)


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("uniformer_small", (32, 32), (1, 1)),
        ("uniformer_small", (63, 256), (1, 8)),
        ("uniformer_small_plus", (1, 1), (1, 1)),
        ("uniformer_small_plus", (33, 100), (2, 4)),
        ("uniformer_video_small", (1, 32, 32), (1, 1)),
        ("uniformer_video_small", (3, 95, 97), (2, 3)),
    ],
)
def test_any_size_with_a_grid_in_every_stage_works(
    name: str, size: tuple[int, ...], grid: tuple[int, int]
) -> None:
    model = small(name).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        features = model.forward_features(x)
    assert features.shape[2:] == (*grid, 512)
    y = logits_of(model, x)
    assert y.shape == (2, 7)
    assert torch.equal(y, model.forward_head(features))
    with use_backend("reference"):
        torch.testing.assert_close(y, logits_of(model, x), rtol=1e-4, atol=1e-5)


def test_pixels_beyond_the_last_whole_patch_do_not_matter() -> None:
    model = small("uniformer_small").eval()
    x = torch.randn(1, 3, 35, 66)
    torch.testing.assert_close(logits_of(model, x), logits_of(model, x[..., :32, :64]))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("uniformer_small", (2, 3, 31, 64), r"\[B, 3, H >= 32, W >= 32\], got \[2, 3, 31, 64\]"),
        ("uniformer_small", (2, 3, 64, 16), r"W >= 32\], got \[2, 3, 64, 16\]"),
        ("uniformer_small", (2, 1, 64, 64), r"\[B, 3, .*got \[2, 1, 64, 64\]"),
        ("uniformer_small", (3, 64, 64), r"got \[3, 64, 64\]"),
        ("uniformer_small", (2, 3, 8, 64, 64), r"got \[2, 3, 8, 64, 64\]"),
        ("uniformer_small_plus", (2, 3, 0, 64), r"\[B, 3, H >= 1, W >= 1\], got \[2, 3, 0, 64\]"),
        ("uniformer_video_small", (2, 3, 0, 64, 64), r"\[B, 3, T >= 1, H >= 32, W >= 32\], got"),
        ("uniformer_video_small", (2, 3, 8, 64, 31), r"got \[2, 3, 8, 64, 31\]"),
        ("uniformer_video_small", (2, 3, 64, 64), r"got \[2, 3, 64, 64\]"),
    ],
)
def test_a_size_that_cannot_work(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"x: expected .*{message}"):
        on_meta(name)(torch.empty(shape, device="meta"))


def test_other_channels() -> None:
    assert logits_of(small("uniformer_small", in_chans=1), torch.randn(2, 1, 64, 64)).shape == (
        2,
        7,
    )
    with pytest.raises(ValueError, match=r"\[B, 1, "):
        small("uniformer_small", in_chans=1)(torch.randn(2, 3, 64, 64))


# Inputs ------------------------------------------------------------------------------------------


def test_a_list_of_one_pathway_is_the_clip() -> None:
    model = small("uniformer_video_small").eval()
    x = torch.randn(1, 3, 4, 32, 32)
    expected = logits_of(model, x)
    assert torch.equal(logits_of(model, [x]), expected)
    assert torch.equal(logits_of(model, (x,)), expected)
    with pytest.raises(ValueError, match="x: expected one pathway, got 2"):
        model([x, x])


@pytest.mark.parametrize("name", ["uniformer_small", "uniformer_small_plus"])
def test_only_floating_tensors(name: str) -> None:
    model = on_meta(name)
    with pytest.raises(TypeError, match=r"x: expected a floating-point tensor, got torch.uint8"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(TypeError, match="got list"):
        model([torch.zeros(1, 3, 64, 64)])


@pytest.mark.parametrize(
    ("name", "keywords", "shape"),
    [
        ("uniformer_small", {}, (3, 64, 64)),
        ("uniformer_small_plus", {}, (3, 64, 64)),
        ("uniformer_base_ls", {}, (3, 64, 64)),
        ("uniformer_video_small", {}, (3, 4, 64, 64)),
        ("uniformer_video_small", {"attention": "divided"}, (3, 4, 64, 64)),
    ],
)
class TestEveryKind:
    def test_samples_do_not_meet_in_evaluation(
        self, name: str, keywords: dict[str, Any], shape: tuple[int, ...]
    ) -> None:
        model = small(name, **keywords).eval()
        x = torch.randn(3, *shape)
        expected = logits_of(model, x)
        x[1, 0, ..., 5, 5] = math.nan
        y = logits_of(model, x)
        assert y[1].isnan().all()
        torch.testing.assert_close(y[[0, 2]], expected[[0, 2]])
        torch.testing.assert_close(y[:1], logits_of(model, x[:1]), rtol=1e-4, atol=1e-5)

    def test_no_samples(self, name: str, keywords: dict[str, Any], shape: tuple[int, ...]) -> None:
        model = small(name, **keywords).eval()
        assert logits_of(model, torch.empty(0, *shape)).shape == (0, 7)

    def test_a_strided_input(
        self, name: str, keywords: dict[str, Any], shape: tuple[int, ...]
    ) -> None:
        model = small(name, **keywords).eval()
        x = torch.randn(2, *shape)
        strided = x.movedim(1, -1).contiguous().movedim(-1, 1)
        torch.testing.assert_close(logits_of(model, strided), logits_of(model, x))

    def test_autocast_and_half_precision_stay_close(
        self, name: str, keywords: dict[str, Any], shape: tuple[int, ...]
    ) -> None:
        model = small(name, **keywords)
        x = torch.randn(4, *shape)
        with torch.no_grad():
            for step in (model, model):  # so that the running statistics are the data's
                step(x)
        expected = logits_of(model.eval(), x)
        with torch.autocast("cpu", torch.bfloat16):
            cast = logits_of(model, x)
        half = logits_of(model.bfloat16(), x.bfloat16())
        for y in (cast, half):
            assert y.dtype == torch.bfloat16
            assert (y - expected).norm() < 0.05 * expected.norm()

    def test_every_parameter_learns(
        self, name: str, keywords: dict[str, Any], shape: tuple[int, ...]
    ) -> None:
        model = small(name, **keywords, drop_path_rate=0.2)
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.randn(8, *shape)).float().square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            # At the start the divided block's values are 0, which leaves these nothing to learn.
            if not key.endswith(("t_norm.weight", "t_norm.bias", "t_attn.proj.weight")):
                assert parameter.grad.any(), key


# Construction ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uniformer_base_ls", "uniformer_video_small"])
def test_initialisation(name: str) -> None:
    model = uniformer.create_model(name)
    for key, module in model.named_modules():
        if isinstance(module, nn.Linear):
            std, size = module.weight.std().item(), module.weight.numel()
            assert std == pytest.approx(0.02, rel=5 / math.sqrt(2 * size)), key
            assert not module.bias.any(), key
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-6 if key.startswith("blocks") else 1e-5), key
            assert (module.weight == 1).all(), key
            assert not module.bias.any(), key
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert (module.eps, module.momentum, module.track_running_stats) == (1e-5, 0.1, True)
    gammas = {key: p for key, p in model.named_parameters() if "gamma" in key}
    assert len(gammas) == (2 * 27 if name == "uniformer_base_ls" else 0)
    assert all(torch.equal(g, torch.full_like(g, 1e-6)) for g in gammas.values())


def test_the_temporal_attention_starts_as_nothing_and_can_learn() -> None:
    torch.manual_seed(1)
    divided = small("uniformer_video_small", attention="divided").eval()
    block = divided.blocks3[0]
    assert not block.t_attn.qkv.weight.any()
    assert not block.t_attn.qkv.bias.any()
    assert (block.t_attn.proj.weight == 1).all()
    assert not block.t_attn.proj.bias.any()

    x = torch.randn(1, 3, 8, 64, 64)
    expected = logits_of(divided, x)
    block.t_norm.weight.data.fill_(3.0)  # reaches nothing but the temporal branch
    assert torch.equal(logits_of(divided, x), expected)
    divided(x).square().sum().backward()
    queries, keys, values = block.t_attn.qkv.weight.grad.chunk(3)
    assert not queries.any()
    assert not keys.any()
    assert values.any()


@pytest.mark.parametrize("name", ["uniformer_small", "uniformer_video_base"])
def test_drop_path_rises_evenly_over_all_blocks(name: str) -> None:
    model = on_meta(name, drop_path_rate=0.3)
    rates = [m.drop_path for m in model.modules() if isinstance(m, (LocalBlock, GlobalBlock))]
    assert rates == pytest.approx(torch.linspace(0, 0.3, len(rates)).tolist())
    assert rates[0] == 0


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_a_rate_that_is_no_probability(rate: float) -> None:
    with pytest.raises(ValueError, match="drop_path_rate: expected 0 <= rate < 1, got"):
        on_meta("uniformer_small", drop_path_rate=rate)


def test_drop_path_is_for_training() -> None:
    model = small("uniformer_video_small", attention="divided", drop_path_rate=0.9)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.0  # leave nothing but stochastic depth to differ
    x = torch.randn(2, 3, 4, 64, 64)
    assert not torch.equal(logits_of(model, x), logits_of(model, x))
    model.eval()
    assert torch.equal(logits_of(model, x), logits_of(model, x))


def test_attention_is_joint_or_divided() -> None:
    def kind(model: nn.Module) -> type[nn.Module]:
        return type(model.blocks4[0])

    assert kind(on_meta("uniformer_video_small")) is GlobalBlock
    assert kind(on_meta("uniformer_video_small", attention="divided")) is DividedBlock
    with pytest.raises(ValueError, match="attention: expected 'joint' or 'divided', got 'space'"):
        on_meta("uniformer_video_small", attention="space")


def test_the_heads_are_the_official_ones() -> None:
    def heads(name: str) -> list[int]:
        model = on_meta(name)
        return [model.blocks3[0].num_heads, model.blocks4[0].num_heads]

    assert heads("uniformer_small") == [5, 8]
    assert heads("uniformer_small_plus") == [10, 16]
    assert heads("uniformer_small_plus_dim64") == [5, 8]


def test_without_a_head_the_features_come_out() -> None:
    model = small("uniformer_small", num_classes=0).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model.forward_features(x).mean((1, 2, 3))
    assert torch.equal(logits_of(model, x), expected)
    assert not [key for key in model.state_dict() if key.startswith("head")]
