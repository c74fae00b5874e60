"""Models by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import uniformer

NAMES = [
    "uniformer_base",
    "uniformer_base_ls",
    "uniformer_small",
    "uniformer_small_plus",
    "uniformer_small_plus_dim64",
    "uniformer_base_tl",
    "uniformer_base_dim64_tl",
    "uniformer_large_ls_tl",
    "uniformer_small_tl",
    "uniformer_small_dim64_tl",
    "uniformer_small_plus_tl",
    "uniformer_small_plus_dim64_tl",
    "uniformer_xs",
    "uniformer_xxs",
    "uniformer_video_base",
    "uniformer_video_small",
    "uniformer_video_xs",
    "uniformer_video_xxs",
    "uniformer_dense_base",
    "uniformer_dense_small",
    "uniformer_dense_xs",
    "uniformer_dense_xxs",
    "uniformerv2_b16",
    "uniformerv2_l14",
    "uniformerv2_l14_336",
]


def test_names() -> None:
    assert uniformer.list_models() == sorted(NAMES)
    assert uniformer.list_models("*video*") == sorted(name for name in NAMES if "video" in name)
    assert uniformer.list_models("uniformer_small_plus*_tl") == [
        "uniformer_small_plus_dim64_tl",
        "uniformer_small_plus_tl",
    ]
    assert uniformer.list_models("resnet*") == []


@pytest.mark.parametrize("name", ["uniformer_smal", "uniformer_video_smal"])
def test_an_unknown_name_is_answered_with_close_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f"name: no model '{name}'; there is .*{name}l"):
        uniformer.create_model(name)


def test_a_name_like_none_is_answered_with_all() -> None:
    with pytest.raises(ValueError, match=", ".join(uniformer.list_models())):
        uniformer.create_model("xyz")


def test_an_unknown_keyword_is_answered_with_the_known_ones() -> None:
    with pytest.raises(TypeError) as error:
        uniformer.create_model("uniformer_small", attention="joint", num_class=5)
    message = str(error.value)
    assert "uniformer_small takes no attention, num_class" in message
    for keyword in ("num_classes", "in_chans", "drop_path_rate", "head_dim", "depths"):
        assert keyword in message


def test_a_subclass_takes_the_keywords_of_its_base() -> None:
    with torch.device("meta"):
        model = uniformer.create_model("uniformer_small_tl", mix_token=True, head_dim=64)
    assert (model.mix_token, model.blocks3[0].num_heads) == (True, 5)
    with pytest.raises(TypeError, match=r"takes no attention; it takes num_classes, mix_token, d"):
        uniformer.create_model("uniformer_small_tl", attention="joint")


def test_keywords_reach_one_model_only() -> None:
    with torch.device("meta"):
        changed = uniformer.create_model("uniformer_small", depths=(1, 2, 1, 1), head_dim=32)
        scaled = uniformer.create_model("uniformer_base_ls")
        official = uniformer.create_model("uniformer_small")
    assert (changed.blocks3[0].num_heads, len(changed.blocks2)) == (10, 2)
    assert scaled.blocks3[0].gamma_1 is not None
    assert (official.blocks3[0].num_heads, len(official.blocks2)) == (5, 4)
    assert official.blocks3[0].gamma_1 is None


def test_weights_come_from_a_checkpoint(tmp_path: Path) -> None:
    options = {"depths": (1, 1, 1, 1), "num_classes": 3}
    saved = uniformer.create_model("uniformer_video_small", **options)
    path = tmp_path / "weights.pth"
    torch.save({"model_state": saved.state_dict()}, path)
    loaded = uniformer.create_model("uniformer_video_small", checkpoint=path, **options)
    assert saved.state_dict().keys() == loaded.state_dict().keys()
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
