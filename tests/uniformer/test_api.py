"""What people know from timm: features, classifiers, checkpointing, configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import uniformer
from torch import Tensor, nn
from uniformer.timm import register_in_timm

SMALL: dict[str, dict[str, Any]] = {
    "uniformer_small": {"depths": (1, 2, 2, 1)},
    "uniformer_small_tl": {"depths": (1, 1, 2, 1)},
    "uniformer_video_small": {"depths": (1, 1, 2, 1)},
    "uniformer_xxs": {"depths": (1, 1, 2, 1)},
    "uniformer_video_xxs": {"depths": (1, 1, 2, 1)},
    "uniformerv2_b16": {"dim": 48, "depth": 5, "num_heads": 4, "resolution": 32, "num_frames": 4},
    "uniformer_dense_small": {"depths": (1, 1, 4, 1), "attention": "hybrid", "window_size": 3},
    "uniformer_dense_xxs": {"depths": (1, 1, 2, 1)},
}
CLASSIFIERS = [name for name in SMALL if "dense" not in name]
STAGED = [name for name in SMALL if "v2" not in name]


def small(name: str, **keywords: Any) -> nn.Module:
    torch.manual_seed(0)
    classes = {} if "dense" in name else {"num_classes": 7}
    return uniformer.create_model(name, **{**SMALL[name], **classes, **keywords}).eval()


def sample(name: str) -> Tensor:
    torch.manual_seed(1)
    clip = "video" in name or "v2" in name
    return torch.randn(2, 3, *((4, 32, 32) if clip else (64, 96)))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_features_and_head_make_the_logits(name: str) -> None:
    model, x = small(name), sample(name)
    with torch.no_grad():
        features = model.forward_features(x)
        logits = model.forward_head(features)
        pooled = model.forward_head(features, pre_logits=True)
        assert torch.equal(logits, model(x))
        assert pooled.shape == (2, model.num_features)
        if "_tl" not in name:  # the second head adds to the logits
            assert torch.equal(model.get_classifier()(pooled), logits)


@pytest.mark.parametrize("name", STAGED)
def test_intermediates_are_the_maps_of_the_stages(name: str) -> None:
    model, x = small(name), sample(name)
    caught = {}
    for index in range(4):

        def catch(_m: nn.Module, _i: Any, out: Any, index: int = index) -> None:
            caught[index] = out[0] if isinstance(out, tuple) else out

        model.get_submodule(f"blocks{index + 1}")[-1].register_forward_hook(catch)
    with torch.no_grad():
        features, maps = model.forward_intermediates(x)
        assert torch.equal(features, model.forward_features(x))
    assert [y.shape[1] for y in maps] == model.feature_info.channels()
    for y, reduction in zip(maps, model.feature_info.reduction(), strict=True):
        assert y.is_contiguous()
        assert y.shape[-2:] == (x.shape[-2] // reduction, x.shape[-1] // reduction)
        assert y.dim() == x.dim()
    for index, y in enumerate(maps):
        raw = caught[index]
        if "dense" in name:
            raw = model.get_submodule(f"norm{index + 1}")(raw)
        torch.testing.assert_close(y, raw.movedim(-1, 1).reshape(y.shape), rtol=1e-4, atol=1e-5)


def test_intermediates_of_v2_are_patch_tokens() -> None:
    model, x = small("uniformerv2_b16"), sample("uniformerv2_b16")
    caught: list[Tensor] = []
    model.transformer.resblocks[2].register_forward_hook(lambda _m, _i, out: caught.append(out))
    with torch.no_grad():
        features, (last, third) = model.forward_intermediates(x, [4, 2])
        assert torch.equal(features, model.forward_features(x))
    assert last.shape == third.shape == (2, 48, 4, 2, 2)
    assert torch.equal(third.flatten(3).permute(0, 2, 3, 1), caught[0][:, :, 1:])
    assert model.feature_indices() == (1, 2, 3, 4)


def test_indices_choose_maps() -> None:
    model, x = small("uniformer_small"), sample("uniformer_small")
    with torch.no_grad():
        _, every = model.forward_intermediates(x)
        for indices, expected in ((2, (2, 3)), ([3, 0], (3, 0)), ([-1], (3,)), ((1,), (1,))):
            _, maps = model.forward_intermediates(x, indices)
            for y, index in zip(maps, expected, strict=True):
                assert torch.equal(y, every[index])
    for indices in (0, 5, [4], [-5], []):
        with pytest.raises(ValueError, match="indices: expected some of 4 maps, got"):
            model.forward_intermediates(x, indices)


@pytest.mark.parametrize("name", SMALL)
def test_features_only(name: str) -> None:
    features, model, x = small(name, features_only=True), small(name), sample(name)
    with torch.no_grad():
        maps, (_, expected) = features(x), model.forward_intermediates(x)
        assert isinstance(maps, list)
        assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
        assert features.feature_info.channels() == [y.shape[1] for y in maps]
        sides = [x.shape[-1] // reduction for reduction in features.feature_info.reduction()]
        assert sides == [y.shape[-1] for y in maps]
        (last,) = small(name, features_only=True, out_indices=[3])(x)
        assert torch.equal(last, model.forward_intermediates(x, [3])[1][0])
    assert features.pretrained_cfg["num_classes"] == 0
    heads = {f"model.{name}.weight" for name in model.classifiers}
    assert not heads & features.state_dict().keys()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_reset_classifier(name: str) -> None:
    model, x = small(name), sample(name)
    kept = {key: v for key, v in model.state_dict().items() if v.shape[:1] != (7,)}
    model.reset_classifier(5)
    with torch.no_grad():
        assert model(x).shape == (2, 5)
        assert model.get_classifier().out_features == 5
        assert all(torch.equal(model.state_dict()[key], v) for key, v in kept.items())
        assert (model.pretrained_cfg["num_classes"], model.num_classes) == (5, 5)
        assert model.pretrained_cfg["keywords"]["num_classes"] == 5
        model.reset_classifier(0)
        assert isinstance(model.get_classifier(), nn.Identity)
        assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
        model.double().reset_classifier(3)
        assert model(x.double()).dtype == torch.float64


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(2)
    outputs = model(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(y.square().mean() for y in outputs if isinstance(y, Tensor)).backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_changes_nothing_but_memory(name: str) -> None:
    x, saved, states, results = sample(name), [], [], []
    for enable in (False, True):
        model = small(name, drop_path_rate=0.3).train()
        model.set_grad_checkpointing(enable)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: (kept.append(t.numel()), t)[1], lambda t: t
        ):
            results.append(gradients(model, x))
        saved.append(sum(kept))
        states.append({key: b.clone() for key, b in model.named_buffers()})
    assert saved[1] < saved[0]
    assert results[0].keys() == results[1].keys()
    for key, gradient in results[0].items():
        torch.testing.assert_close(results[1][key], gradient, msg=key)
    assert all(torch.equal(states[1][key], b) for key, b in states[0].items())


@pytest.mark.parametrize("name", SMALL)
def test_no_weight_decay(name: str) -> None:
    assert small(name).no_weight_decay() == {"pos_embed", "cls_token"}


@pytest.mark.parametrize(
    ("name", "keywords", "expected"),
    [
        ("uniformer_small", {}, ((3, 224, 224), 0.485, "bicubic", 0.875, "head")),
        ("uniformer_base_tl", {}, ((3, 224, 224), 0.485, "bicubic", 0.9, ("head", "aux_head"))),
        ("uniformer_video_base", {}, ((3, 16, 224, 224), 0.45, "bilinear", 1.0, "head")),
        ("uniformer_dense_small", {}, ((3, 800, 1280), 0.485, "bicubic", 0.875, None)),
        (
            "uniformerv2_l14",
            {"num_frames": 16, "in_chans": 1},
            ((1, 16, 224, 224), 0.45, "bilinear", 1.0, "transformer.proj.2"),
        ),
    ],
)
def test_pretrained_cfg(name: str, keywords: dict[str, Any], expected: tuple[Any, ...]) -> None:
    with torch.device("meta"):
        model = uniformer.create_model(name, **keywords)
    cfg = model.pretrained_cfg
    keys = ("input_size", "mean", "interpolation", "crop_pct", "classifier")
    assert tuple(cfg[k][0] if k == "mean" else cfg[k] for k in keys) == expected
    assert cfg["architecture"] == name
    assert len(cfg["std"]) == len(cfg["mean"]) == 3
    first = model.get_submodule(cfg["first_conv"])
    assert first.in_channels == cfg["input_size"][0]
    if cfg["classifier"]:
        assert model.get_classifier().out_features == cfg["num_classes"]


def test_timm_finds_the_models() -> None:
    registry: dict[str, Any] = {}
    register_in_timm(lambda entry: registry.setdefault(entry.__name__, entry))
    assert sorted(registry) == uniformer.list_models()
    extra = {"pretrained_cfg": None, "pretrained_cfg_overlay": None}  # as timm passes them
    with torch.device("meta"):
        model = registry["uniformer_small"](pretrained=False, **extra, num_classes=5)
    assert type(model).__name__ == "ImageUniFormer"
    assert model.get_classifier().out_features == 5
    with pytest.raises(ValueError, match="pretrained: no weights to download"):
        registry["uniformer_small"](pretrained=True)
