"""The models as backbones of transformers and of mmengine's frameworks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import uniformer
from torch import nn
from uniformer.mm import register_in_mmengine

from . import tiny

DENSE = {"depths": (1, 1, 1, 1), "attention": "hybrid", "window_size": 3}


class Registry:
    """As much of mmengine's as registering and building takes."""

    def __init__(self) -> None:
        self.modules: dict[str, Callable[..., nn.Module]] = {}

    def register_module(self, name: str, module: Callable[..., nn.Module]) -> None:
        if name in self.modules:
            raise KeyError(f"{name} is already registered in models at {module.__module__}")
        self.modules[name] = module

    def build(self, config: dict[str, Any]) -> nn.Module:
        config = dict(config)
        return self.modules[config.pop("type")](**config)


@pytest.fixture(params=["stand-in", "mmengine"])
def registry(request: pytest.FixtureRequest) -> Any:
    if request.param == "stand-in":
        return Registry()
    return pytest.importorskip("mmengine.registry").Registry("models")


def test_dense_models_of_a_registry(registry: Any) -> None:
    names = register_in_mmengine(registry, "*dense*")
    assert names == uniformer.list_models("*dense*")
    config = {"type": "uniformer_dense_small", **DENSE, "out_indices": (1, 3)}
    backbone = registry.build(config).eval()
    images = tiny.clip(2, 3, 64, 96)
    model = uniformer.create_model("uniformer_dense_small", **DENSE, out_indices=(1, 3)).eval()
    model.load_state_dict(backbone.state_dict())  # the official keys, too
    for got, want in zip(backbone(images), model(images), strict=True):
        torch.testing.assert_close(got, want)
    with pytest.raises(KeyError, match="already registered"):
        register_in_mmengine(registry, "uniformer_dense_small")
    with pytest.raises(ValueError, match="pattern: expected one for dense or video models"):
        register_in_mmengine(registry, "resnet*")


def test_video_models_of_a_registry(registry: Any, tmp_path: Path) -> None:
    register_in_mmengine(registry, "*v*")
    model, clip = tiny.light(num_classes=3).eval(), tiny.clip(2, 3, 4, 32, 32)
    uniformer.save_checkpoint(model, tmp_path / "m.safetensors")
    start = {"type": "Pretrained", "checkpoint": str(tmp_path / "m.safetensors")}
    backbone = registry.build({"type": "uniformer_video_xxs", **tiny.LIGHT, "init_cfg": start})
    backbone.init_weights()
    pooled = backbone.eval()(clip).mean((2, 3, 4))
    torch.testing.assert_close(model.head(pooled), model(clip))
    v2 = registry.build({"type": "uniformerv2_b16", **tiny.V2}).eval()
    whole = uniformer.create_model("uniformerv2_b16", **tiny.V2, num_classes=0).eval()
    whole.load_state_dict(v2.state_dict())
    v2.init_weights()
    torch.testing.assert_close(v2(clip), whole(clip))
    with pytest.raises(ValueError, match="init_cfg: expected dict"):
        registry.build({"type": "uniformerv2_b16", **tiny.V2, "init_cfg": {"type": "Normal"}})


@pytest.fixture
def config() -> Any:
    pytest.importorskip("transformers")
    from uniformer.transformers import UniFormerBackboneConfig

    keywords = {name: list(v) if isinstance(v, tuple) else v for name, v in tiny.LIGHT.items()}
    return UniFormerBackboneConfig(architecture="uniformer_dense_xxs", keywords=keywords)


def test_the_backbones_maps_are_the_models(config: Any) -> None:
    from transformers import AutoBackbone

    config.out_features = ["stage2", "stage4"]
    backbone, images = AutoBackbone.from_config(config).eval(), tiny.clip(1, 3, 64, 96)
    output = backbone(images, output_hidden_states=True)
    maps = backbone.model(images)
    assert backbone.channels == [16, 16]
    assert [tuple(x.shape) for x in output.feature_maps] == [(1, 16, 8, 12), (1, 16, 2, 3)]
    assert all(got.equal(maps[i]) for got, i in zip(output.feature_maps, (1, 3), strict=True))
    assert all(got.equal(want) for got, want in zip(output.hidden_states, maps, strict=True))
    (alone,) = backbone(images, return_dict=False)
    assert alone[1].equal(maps[3])


def test_upernet_trains_saves_and_loads(config: Any, tmp_path: Path) -> None:
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    heads = {"hidden_size": 8, "auxiliary_channels": 8, "auxiliary_in_channels": 16}
    whole = UperNetConfig(backbone_config=config, num_labels=3, pool_scales=[1, 2], **heads)
    model = UperNetForSemanticSegmentation(whole).train()
    images, labels = tiny.clip(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    output = model(images, labels=labels)
    output.loss.backward()
    assert output.logits.shape == (2, 3, 64, 64)
    first = model.backbone.model.patch_embed1.proj[0].weight
    assert first.grad.abs().sum() > 0
    model.eval().save_pretrained(tmp_path)
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():  # running statistics have moved, and come back
        torch.testing.assert_close(again(images).logits, model(images).logits)


def test_a_backbone_starts_as_its_model(config: Any) -> None:
    from uniformer.transformers import UniFormerBackbone

    backbone = UniFormerBackbone(config)
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            assert module.bias.count_nonzero() == 0
            assert 0.015 < module.weight.std() < 0.025
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
    assert backbone.model.cls_token.count_nonzero() == 0


def test_wrong_backbones() -> None:
    pytest.importorskip("transformers")
    from uniformer.transformers import UniFormerBackboneConfig

    with pytest.raises(ValueError, match=r"architecture: expected one of uniformer_dense_base, "):
        UniFormerBackboneConfig(architecture="uniformer_small")
    with pytest.raises(ValueError, match="stage5"):
        UniFormerBackboneConfig(out_features=["stage5"])
