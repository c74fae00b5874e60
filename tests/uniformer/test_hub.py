"""Models as folders and repositories: what is written, read back, and sent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import uniformer
from uniformer import hub
from uniformer.models.light import VideoLightUniFormer
from uniformer.models.v2 import UniFormerV2
from uniformer.weights import CheckpointError
from uniformer.weights.files import read_checkpoint

from . import tiny


def test_a_folder_gives_the_model_back(tmp_path: Path) -> None:
    model = tiny.light(num_classes=3).eval()
    assert model.save_pretrained(tmp_path / "m", class_names=["a", "b", "c"]) == tmp_path / "m"
    again, clip = hub.from_pretrained(tmp_path / "m"), tiny.clip(2, 3, 4, 32, 32)
    assert type(again) is VideoLightUniFormer
    assert not again.training
    assert again(clip).equal(model(clip))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architecture"] == "uniformer_video_xxs"
    assert config["keywords"]["dims"] == [8, 16, 16, 16]
    assert read_checkpoint(tmp_path / "m" / "model.safetensors")[1].class_names == ("a", "b", "c")
    assert VideoLightUniFormer.from_pretrained(tmp_path / "m")(clip).equal(model(clip))
    with pytest.raises(CheckpointError, match=r"expected a UniFormerV2, .* a VideoLightUniFormer"):
        UniFormerV2.from_pretrained(tmp_path / "m")


def test_another_head(tmp_path: Path) -> None:
    model = tiny.light(num_classes=3)
    model.save_pretrained(tmp_path)
    other = hub.from_pretrained(tmp_path, head="drop", num_classes=5)
    assert other.head.weight.shape == (5, 16)
    assert other.patch_embed1.proj[0].weight.equal(model.patch_embed1.proj[0].weight)
    with pytest.raises(CheckpointError, match="head='drop'"):
        hub.from_pretrained(tmp_path, num_classes=5)


def test_the_card_states_facts_only(tmp_path: Path) -> None:
    model = tiny.light(num_classes=3)
    card = hub.model_card(model)
    assert card.startswith("---\nlibrary_name: uniformer-kernels\npipeline_tag: video-classif")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"| Parameters | {count:,} |" in card
    assert "these weights may be others" in card
    assert "| Kinetics-400 | 16 × 160 × 160 | top-1 75.1 |" in card
    dense = hub.model_card(uniformer.create_model("uniformer_dense_xxs", **tiny.LIGHT))
    assert "pipeline_tag: image-feature-extraction" in dense


def test_bad_sources(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a config.json of save_pretrained, .*architecture"):
        hub.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "resnet", "keywords": {}}')
    with pytest.raises(CheckpointError, match="no model 'resnet'"):
        hub.from_pretrained(tmp_path)
    tiny.light(num_classes=3).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors': no such file"):
        hub.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected a folder or a repository user/name"):
        hub.from_pretrained(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"one of uniformer\.create_model, got Linear"):
        hub.save_pretrained(torch.nn.Linear(1, 1), tmp_path)


def test_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent is what a folder holds; a repository is read as the folder it is downloaded to."""
    stored: dict[str, Any] = {}

    class Api:
        def __init__(self, token: Any) -> None:
            stored["token"] = token

        def create_repo(self, name: str, **options: Any) -> None:
            stored["created"] = name, options

        def upload_folder(self, *, repo_id: str, folder_path: str, **_: Any) -> str:
            for path in Path(folder_path).iterdir():
                (tmp_path / path.name).write_bytes(path.read_bytes())
            return f"https://example.org/{repo_id}"

    def download(name: str, **options: Any) -> str:
        stored["asked"] = name, options["revision"]
        return str(tmp_path)

    fake = SimpleNamespace(HfApi=Api, snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    model = tiny.light(num_classes=3).eval()
    assert model.push_to_hub("me/m", private=True, token="t") == "https://example.org/me/m"
    assert stored["token"] == "t"
    assert stored["created"] == ("me/m", {"private": True, "exist_ok": True})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    clip = tiny.clip(1, 3, 4, 32, 32)
    assert hub.from_pretrained("me/m", revision="v1")(clip).equal(model(clip))
    assert stored["asked"] == ("me/m", "v1")


def test_the_real_package_has_what_is_called() -> None:
    real = pytest.importorskip("huggingface_hub")
    from inspect import signature

    taken = set(signature(real.snapshot_download).parameters)
    assert {"revision", "cache_dir", "token", "allow_patterns"} <= taken
    assert {"private", "exist_ok"} <= set(signature(real.HfApi.create_repo).parameters)
    assert {"repo_id", "folder_path", "revision", "commit_message"} <= set(
        signature(real.HfApi.upload_folder).parameters
    )


def test_without_the_package_folders_still_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    model = tiny.light(num_classes=3)
    model.save_pretrained(tmp_path)
    hub.from_pretrained(tmp_path)
    for call in (lambda: hub.from_pretrained("me/m"), lambda: model.push_to_hub("me/m")):
        with pytest.raises(ImportError, match=r"pip install 'uniformer-kernels\[hub\]'"):
            call()
