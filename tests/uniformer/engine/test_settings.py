"""Recipes and overrides are checked; every mistake is named."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from uniformer.data import Augment, Mixup
from uniformer.engine.settings import (
    Settings,
    SettingsError,
    differences,
    list_recipes,
    make_settings,
    parse_overrides,
    read_recipe,
)
from uniformer.engine.trainer import _create


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_is_whole(name: str) -> None:
    settings = make_settings(name)
    with torch.device("meta"):
        model = _create(settings, settings.num_classes or 16)
    assert model.pretrained_cfg["architecture"] == settings.model
    Augment(
        settings.size,
        rand_augment=settings.rand_augment,
        area=settings.area,
        aspect=settings.aspect,
        flip=settings.flip,
        erase=settings.erase,
    )
    Mixup(10, mixup=settings.mixup, cutmix=settings.cutmix, smoothing=settings.smoothing)
    # Published: eight devices a node.
    assert name == "motion" or settings.batch_size % 8 == 0


def test_published_figures() -> None:
    """Some of every family, against the tables of the papers' code."""
    table: dict[str, dict[str, Any]] = {
        "uniformer_base_k400_32x4": {
            "batch_size": 32, "lr": 1e-4, "epochs": 110, "warmup_epochs": 10, "frames": 32,
            "stride": 4, "repeats": 2, "keywords": {"drop_path_rate": 0.3}, "weight_decay": 0.05,
            "clip_grad": 20, "mixup": 0.8, "cutmix": 1.0, "erase": 0.25, "min_lr": 1e-6,
        },
        "uniformer_base_k600_32x4": {"batch_size": 128, "lr": 4e-4, "num_classes": 600},
        "uniformer_small_k400_8x8": {"batch_size": 128, "lr": 4e-4, "epochs": 100, "stride": 8},
        "uniformer_small_sthv2_32_prek600": {
            "lr": 2e-4, "epochs": 50, "warmup_epochs": 5, "sampling": "uniform", "flip": 0,
            "bgr": True, "num_classes": 174, "keywords": {"drop_path_rate": 0.3}, "repeats": 2,
        },
        "uniformer_base_sthv1_16_prek400": {
            "batch_size": 40, "lr": 2.5e-4, "epochs": 60, "template": "{:05d}.jpg",
            "keywords": {"drop_path_rate": 0.6},
        },
        "uniformer_xxs_k400_4_128": {
            "batch_size": 256, "lr": 4e-4, "weight_decay": 0.1, "rand_augment": "rand", "amp": None,
            "keywords": {"drop_path_rate": 0.05, "layer_scale_init": 0.1}, "size": 128,
        },
        "uniformer_xs_k400_32_192": {
            "batch_size": 128, "lr": 4e-4, "weight_decay": 0.05,
            "keywords": {"drop_path_rate": 0.1}, "rand_augment": "rand-m7-n4-mstd0.5-inc1",
        },
        "uniformerv2_b16_k400_8": {
            "batch_size": 256, "lr": 1e-5, "epochs": 55, "mixup": 0, "cutmix": 0, "erase": 0,
            "smoothing": 0, "repeats": 1, "sampling": "uniform",
        },
        "uniformerv2_l14_k600_16_prek710": {
            "batch_size": 256, "lr": 1.5e-6, "epochs": 5, "warmup_epochs": 1, "start_head": "take",
        },
        "uniformerv2_l14_sthv2_16": {
            "batch_size": 128, "lr": 2e-5, "epochs": 22, "repeats": 2, "flip": 0,
        },
    }  # fmt: skip
    for name, wanted in table.items():
        settings = asdict(make_settings(name))
        assert {key: settings[key] for key in wanted} == wanted, name
    keywords = make_settings("uniformerv2_l14_sthv2_16").keywords
    assert keywords["return_layers"] == list(range(8, 24))
    assert (keywords["backbone_drop_path_rate"], keywords["drop_path_rate"]) == (0.2, 0.4)
    assert keywords["temporal_downsample"] is True
    assert keywords["local_mhra"] == "double"


def test_overrides_go_over_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: a\nlr: 4e-4\nkeywords: {x: 1, y: 2}\n")
    path = tmp_path / "mine.yaml"
    path.write_text("inherits: base.yaml\nepochs: 7\nwarmup_epochs: 1\nkeywords: {y: 3}\n")
    settings = make_settings(
        str(path), ["lr=1e-3", "keywords.z=[1, 2]", "amp=null", "area=[0.5, 1]"]
    )
    assert (settings.model, settings.epochs, settings.lr) == ("a", 7, 1e-3)
    assert settings.keywords == {"x": 1, "y": 3, "z": [1, 2]}
    assert settings.area == (0.5, 1.0)
    assert make_settings(str(path)).lr == 4e-4
    assert make_settings(None, ["epochs=9"], under=asdict(settings)).keywords == settings.keywords
    assert settings.warmup_epochs == 1.0
    assert isinstance(settings.warmup_epochs, float)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("learning_rate=1", "--set: learning_rate: no such setting; there is"),
        ("lr", "--set: expected key=value, got 'lr'"),
        ("lr=fast", "lr: expected a number, got 'fast'"),
        ("lr=-1", "lr: expected at least 0, got -1"),
        ("lr=.nan", "lr: expected at least 0, got nan"),
        ("lr=true", "lr: expected a number, got True"),
        ("epochs=0", "epochs: expected at least 1, got 0"),
        ("epochs=1.5", "epochs: expected a whole number, got 1.5"),
        ("epochs=true", "epochs: expected a whole number, got True"),
        ("epochs=null", "epochs: expected a whole number, got None"),
        ("erase=2", "erase: expected 0 to 1, got 2"),
        ("amp=fp8", "amp: expected one of bf16, fp16, got 'fp8'"),
        ("amp=off", "amp: expected text or null, got False"),
        ("bgr=1", "bgr: expected true or false, got 1"),
        ("parallel=dp", "parallel: expected one of ddp, fsdp, got 'dp'"),
        ("sampling=sparse", "sampling: expected one of dense, uniform"),
        ("area=0.5", "area: expected 2 numbers, got 0.5"),
        ("area=[1, 0.5]", "area: expected 0 < low <= high, got"),
        ("betas=[0.9, 1]", "betas: expected 0 <= beta < 1"),
        ("warmup_epochs=200", "warmup_epochs: expected at most epochs=100, got 200"),
        ("keywords=3", "keywords: expected keys and values, got 3"),
        ("lr.x=3", "--set: lr: it has no parts"),
        ("model=[", "--set: model: expected a value"),
        ("ema=1.5", "ema: expected 0 to 1"),
    ],
)
def test_wrong_overrides(entry: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_settings(None, ["model=uniformer_video_xxs", entry])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lrr: 1", "lrr: no such setting; there is lr"),
        ("- lr", "expected keys and values, got list"),
        ("lr: [", "cannot read"),
        ("", "expected keys and values, got NoneType"),
        ("inherits: mine.yaml", "got a circle"),
        ("inherits: nowhere", "expected a YAML file or a recipe's name, got 'nowhere'"),
        ("1: 2", "expected keys and values"),
        ("epochs: 3", "model: expected a value, from --recipe or --set, got none"),
    ],
)
def test_wrong_recipes(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError) as caught:
        make_settings(path)
    assert message in str(caught.value)


def test_unknown_recipe_names_close_ones() -> None:
    with pytest.raises(SettingsError, match=r"there is .*uniformer_small_k400_16x4"):
        read_recipe("uniformer_small_k400_16x5")


def test_differences() -> None:
    before, now = asdict(Settings(model="a")), asdict(Settings(model="b", lr=1, workers=9))
    must, may = differences(before, now)
    assert must == ["lr: 0.0001, now 1.0", "model: 'a', now 'b'"]
    assert may == ["workers: 2, now 9"]
    assert parse_overrides([]) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "uniformer_video_xxl"}, "no model 'uniformer_video_xxl'"),
        ({"model": "uniformer_small"}, "model: expected a classifier of clips"),
        ({"model": "uniformer_dense_xxs"}, "uniformer_dense_xxs takes no num_classes"),
        ({"model": "uniformer_video_xxs", "keywords": {"width": 3}}, "takes no width"),
        ({"model": "uniformer_video_xxs", "keywords": {"keep": 3}}, "keep: expected 0 < keep <= 1"),
        (
            {"model": "uniformerv2_b16"},
            "num_frames=8 and resolution=224 of keywords, got 16 and 224",
        ),
    ],
)
def test_models_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught, torch.device("meta"):
        _create(Settings(**given), 4)
    assert message in str(caught.value)
