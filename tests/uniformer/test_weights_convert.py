"""``python -m uniformer convert``: any weights in, ours out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import uniformer
from safetensors import safe_open
from safetensors.torch import load_file
from uniformer import cli
from uniformer.weights import CheckpointError, save_checkpoint
from uniformer.weights.convert import convert_checkpoint

from .test_weights_dialects import build, mmaction2_v1, prefixed, same


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


def said(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["uniformer"])


def run(monkeypatch: pytest.MonkeyPatch, *typed: object) -> None:
    monkeypatch.setattr(sys, "argv", ["uniformer", "convert", *map(str, typed)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    if ended.value.code:
        raise ended.value


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("uniformer_small", {"num_classes": 7}),
        ("uniformer_video_small", {"num_classes": 174, "attention": "divided"}),
        ("uniformer_video_small", {"num_classes": 400, "temporal_patch": True}),
        ("uniformer_xxs", {"num_classes": 1000, "in_chans": 4}),
        ("uniformer_dense_small", {"in_chans": 3}),
    ],
)
def test_the_model_is_recognised(
    tmp_path: Path, out: Path, name: str, keywords: dict[str, Any]
) -> None:
    model = uniformer.create_model(name, **keywords)
    torch.save({"model": model.state_dict()}, tmp_path / "in.pth")
    convert_checkpoint(tmp_path / "in.pth", out)
    assert same(load_file(out), model.state_dict())
    stored = said(out)
    assert (stored["model"], stored["source"]) == (name, "in.pth")
    assert keywords.items() <= stored["keywords"].items()


def test_v2s_keywords_are_recognised() -> None:
    from uniformer.weights.convert import _SEEN

    options = {"temporal_downsample": True, "local_mhra": "single", "frozen": True}
    state = build("uniformerv2_b16", **options).state_dict()
    seen = {keyword: tell(state) for keyword, tell in _SEEN.items()}
    expected = {**options, "return_layers": [1], "num_classes": 5, "in_chans": 3}
    assert {k: v for k, v in seen.items() if v is not None} == expected


def test_convert_as_typed(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build("uniformer_video_small")
    torch.save({"state_dict": mmaction2_v1(model.state_dict())}, tmp_path / "in.pth")
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "rows.json").write_text("[4, 1]")
    run(
        monkeypatch,
        tmp_path / "in.pth",
        out,
        "--model=uniformer_video_small",
        "--keyword=depths=[1,1,1,1]",
        "--keyword=attention=joint",
        f"--classes-from={tmp_path / 'names.txt'}",
        f"--classes-to={tmp_path / 'rows.json'}",
    )
    assert "mmaction2 V1 weights" in capsys.readouterr().out
    stored = said(out)
    assert stored["model"] == "uniformer_video_small"
    assert stored["head_dim"] == 64
    assert stored["class_names"] == ["e", "b"]
    assert stored["dialect"] == "mmaction2 V1"
    assert stored["keywords"]["num_classes"] == 2
    assert torch.equal(load_file(out)["head.weight"], model.head.weight[[4, 1]])


def test_our_own_files_name_themselves(tmp_path: Path, out: Path) -> None:
    path, model = tmp_path / "in.safetensors", build("uniformer_small_tl")
    save_checkpoint(model, path, class_names=list("abcde"))
    convert_checkpoint(path, out, classes_to=["c", "a"])
    stored = said(out)
    assert (stored["model"], stored["head_dim"]) == ("uniformer_small_tl", 32)
    assert (stored["class_names"], stored["keywords"]["num_classes"]) == (["c", "a"], 2)
    with pytest.raises(CheckpointError, match=r"head_dim=64, got .* head_dim=32"):
        convert_checkpoint(
            path, out, model="uniformer_small_dim64_tl", keywords={"depths": [1, 1, 1, 1]}
        )


def test_image_weights_to_a_video_model(tmp_path: Path, out: Path) -> None:
    torch.save(build("uniformer_small").state_dict(), tmp_path / "in.pth")
    report = convert_checkpoint(
        tmp_path / "in.pth",
        out,
        model="uniformer_video_small",
        keywords={"depths": [1, 1, 1, 1], "num_classes": 9},
        head="drop",
        inflation="centre",
    )
    assert report.inflated
    assert load_file(out)["head.weight"].shape == (9, 512)


def test_an_ambiguous_model_is_asked_for(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = uniformer.create_model("uniformer_small_plus", num_classes=3).state_dict()
    torch.save(state, tmp_path / "in.pth")
    both = "uniformer_small_plus, uniformer_small_plus_dim64"
    with pytest.raises(SystemExit, match=rf"uniformer: checkpoint: .*: {both}; name the model"):
        run(monkeypatch, tmp_path / "in.pth", out)
    assert not out.exists()
    run(monkeypatch, tmp_path / "in.pth", out, "--model", "uniformer_small_plus_dim64")
    assert said(out)["head_dim"] == 64


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ((), "shapes: none; name the model"),
        (("--model=uniformer_smal",), "no model 'uniformer_smal'; there is uniformer_small"),
        (("--model=uniformer_small", "--keyword=depth=3"), "takes no depth"),
        (("--model=uniformer_small", "--head=keep"), "head: expected one of"),
        (("--model=uniformer_small",), "expected the keys and shapes of ImageUniFormer"),
    ],
)
def test_what_cannot_be_converted_ends_with_a_message(
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: tuple[str, ...],
    message: str,
) -> None:
    torch.save(prefixed({"weight": torch.zeros(3)}, "layer."), tmp_path / "in.pth")
    with pytest.raises(SystemExit, match=f"^uniformer: .*{message}"):
        run(monkeypatch, tmp_path / "in.pth", out, *typed)
    assert not out.exists()
