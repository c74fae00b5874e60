"""What our own files say beside the weights: the model, its head size, its classes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import uniformer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from uniformer.weights import CheckpointError, load_checkpoint, save_checkpoint

from .test_weights_dialects import TINY, build, same, snapshot

NAMES = ["abseiling", "air drumming", "bowling", "surfing water", "zumba"]


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["uniformer"])


def test_a_saved_model_loads_and_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    trained, model = build("uniformer_small_plus"), build("uniformer_small_plus")
    save_checkpoint(trained, path, class_names=NAMES, dialect="official", source="s.pth")
    assert metadata(path) == {
        "model": "uniformer_small_plus",
        "keywords": {"depths": [1, 1, 1, 1], "head_dim": 32, "conv_stem": True, "num_classes": 5},
        "head_dim": 32,
        "class_names": NAMES,
        "dialect": "official",
        "source": "s.pth",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = load_checkpoint(model, path)
    assert same(model.state_dict(), trained.state_dict())
    assert report.class_names == tuple(NAMES)


def test_a_model_built_by_hand_is_saved_without_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    save_checkpoint(model, tmp_path / "plain.safetensors")
    said = metadata(tmp_path / "plain.safetensors")
    assert (said["model"], said["head_dim"], said["class_names"]) == (None, None, None)
    load_checkpoint(model, tmp_path / "plain.safetensors")


def test_saving_replaces_a_file_only_when_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tmp_path / "weights.safetensors", build("uniformer_small")
    save_checkpoint(model, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("uniformer.weights.files.os.replace", full)
    with pytest.raises(CheckpointError, match=r"cannot write '.*': no space left"):
        save_checkpoint(build("uniformer_small"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_checks_name_and_classes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a \.safetensors name, got '.*w\.pth'"):
        save_checkpoint(build("uniformer_small"), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(build("uniformer_small"), tmp_path / "gone" / "w.safetensors")
    with pytest.raises(CheckpointError, match="expected 5 names, one for each"):
        save_checkpoint(build("uniformer_small"), tmp_path / "w.safetensors", class_names=NAMES[:4])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "said",
    [
        "not JSON",
        "[1]",
        '{"head_dim": "64"}',
        '{"class_names": [1, 2]}',
        '{"class_names": 3}',
        '{"keywords": []}',
        '{"model": 3}',
    ],
)
def test_hostile_metadata_are_refused(tmp_path: Path, said: str) -> None:
    model = build("uniformer_small")
    before, path = snapshot(model), tmp_path / "hostile.safetensors"
    save_file(build("uniformer_small").state_dict(), path, {"uniformer": said})
    with pytest.raises(CheckpointError, match="expected a whole"):
        load_checkpoint(model, path)
    assert same(model.state_dict(), before)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    model = build("uniformer_small")
    before, path = snapshot(model), tmp_path / "clip.pt"
    torch.jit.script(nn.Linear(2, 2)).save(path)
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_checkpoint(model, path)
    assert same(model.state_dict(), before)


def test_a_weight_without_values_is_refused(tmp_path: Path) -> None:
    model = build("uniformer_small")
    state, before = build("uniformer_small").state_dict(), snapshot(model)
    torch.save(state | {"norm.weight": torch.empty(512, device="meta")}, tmp_path / "meta.pth")
    with pytest.raises(CheckpointError, match=r"meta\.pth"):
        load_checkpoint(model, tmp_path / "meta.pth")
    assert same(model.state_dict(), before)


def test_another_head_dim_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "tl.safetensors", build("uniformer_small_dim64_tl")
    save_checkpoint(build("uniformer_small_tl"), path)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"the model's head_dim=64, got '.*': head_dim=32"):
        load_checkpoint(model, path)
    with pytest.raises(CheckpointError, match="head_dim=32"):
        load_checkpoint(model, path, head_dim=64)  # the file knows better
    state = build("uniformer_small_tl").state_dict()
    torch.save(state, tmp_path / "tl.pth")
    with pytest.raises(CheckpointError, match="head_dim=32"):
        load_checkpoint(model, tmp_path / "tl.pth", head_dim=32)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("name", "head_dim", "released"),
    [
        ("uniformer_small_tl", 32, "32 or 64"),
        ("uniformer_base_dim64_tl", 64, "32 or 64"),
        ("uniformer_small_plus", 32, "32 or 64"),
        ("uniformer_video_small", 32, "64"),
        ("uniformer_xs", 64, "32"),
    ],
)
def test_there_is_a_warning_where_nobody_says_head_dim(
    tmp_path: Path, name: str, head_dim: int, released: str
) -> None:
    model, path = build(name, head_dim=head_dim), tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    with pytest.warns(UserWarning, match=f"these have {released}, and .* {head_dim}") as caught:
        load_checkpoint(model, path)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(model, path, head_dim=head_dim)
        # Typed out in the call that makes the model, it is known too.
        uniformer.create_model(name, checkpoint=path, head_dim=head_dim, **TINY)


def test_the_warning_points_at_the_caller_of_create_model(tmp_path: Path) -> None:
    torch.save(build("uniformer_small_tl").state_dict(), tmp_path / "tl.pth")
    with pytest.warns(UserWarning, match="head_dim") as caught:
        uniformer.create_model("uniformer_small_tl", checkpoint=tmp_path / "tl.pth", **TINY)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "name", ["uniformer_small", "uniformer_base_ls", "uniformer_video_base", "uniformer_xxs"]
)
def test_where_one_head_dim_is_released_there_is_no_warning(tmp_path: Path, name: str) -> None:
    torch.save(build(name).state_dict(), tmp_path / "weights.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(build(name), tmp_path / "weights.pth")


def test_token_labeling_weights_may_have_small_heads_for_a_video_model(tmp_path: Path) -> None:
    torch.save(build("uniformer_small_tl").state_dict(), tmp_path / "tl.pth")
    with pytest.warns(UserWarning, match="head_dim"):
        load_checkpoint(build("uniformer_video_small"), tmp_path / "tl.pth", head="drop")


OFFICIAL = ["zumba", "bowling", "abseiling", "surfing water", "air drumming"]
LISTS = {
    "names.txt": "\n".join(OFFICIAL) + "\n",
    "numbered.txt": "".join(f"{name}\t{OFFICIAL.index(name)}\n" for name in NAMES),
    "numbered.csv": "".join(f'"{name}",{OFFICIAL.index(name)}\n' for name in NAMES),
    "names.csv": "\n".join(OFFICIAL),
    "names.json": json.dumps(OFFICIAL),
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("model_name", ["uniformer_video_small", "uniformer_small_dim64_tl"])
def test_heads_are_put_in_order_by_name(tmp_path: Path, name: str, model_name: str) -> None:
    (tmp_path / name).write_text(LISTS[name])
    trained, model = build(model_name), build(model_name)
    torch.save(trained.state_dict(), tmp_path / "official.pth")
    report = load_checkpoint(
        model,
        tmp_path / "official.pth",
        head_dim=64,
        classes_from=tmp_path / name,
        classes_to=NAMES,
    )
    assert report.class_names == tuple(NAMES)
    for key, value in model.state_dict().items():
        came = trained.state_dict()[key]
        if key.startswith(("head.", "aux_head.")):
            for row, wanted in enumerate(NAMES):
                assert torch.equal(value[row], came[OFFICIAL.index(wanted)])
        else:
            assert torch.equal(value, came)


def test_a_files_own_names_put_heads_in_order(tmp_path: Path) -> None:
    path, trained = tmp_path / "official.safetensors", build("uniformer_video_small")
    save_checkpoint(trained, path, class_names=OFFICIAL)
    model = build("uniformer_video_small", num_classes=2)
    report = load_checkpoint(model, path, classes_to=["air drumming", "zumba"])
    assert torch.equal(model.head.weight, trained.head.weight[[4, 0]])
    assert torch.equal(model.head.bias, trained.head.bias[[4, 0]])
    assert report.class_names == ("air drumming", "zumba")


def test_rows_by_number(tmp_path: Path) -> None:
    trained = build("uniformer_video_xxs", num_classes=7)
    model = build("uniformer_video_xxs", num_classes=3)
    torch.save(trained.state_dict(), tmp_path / "k710.pth")
    (tmp_path / "map_k3.json").write_text("[6, 0, 2]")
    for rows in ([6, 0, 2], tmp_path / "map_k3.json"):
        report = load_checkpoint(model, tmp_path / "k710.pth", classes_to=rows)
        assert torch.equal(model.head.weight, trained.head.weight[[6, 0, 2]])
        assert torch.equal(model.head_cls.bias, trained.head_cls.bias[[6, 0, 2]])
        assert report.class_names is None
    named = load_checkpoint(
        model, tmp_path / "k710.pth", classes_from=list("abcdefg"), classes_to=[6, 0, 2]
    )
    assert named.class_names == ("g", "a", "c")


@pytest.mark.parametrize(
    ("classes_from", "classes_to", "message"),
    [
        (
            OFFICIAL,
            [*NAMES[:4], "juggling"],
            r"of the file's 5 classes, got others: \['juggling'\]",
        ),
        (None, NAMES, "the file does not name its classes"),
        (OFFICIAL[:4], NAMES, "expected 5 names, one for each of the file's classes, got 4"),
        ([4, 3, 2, 1, 0], NAMES, "expected 5 names"),
        ([*OFFICIAL[:4], "zumba"], NAMES, "expected every one once.*'zumba'"),
        (OFFICIAL, [0, 1, 2, 3, 5], "expected rows from 0 to 4"),
        (OFFICIAL, [0, -1], "expected rows from 0 to 4"),
        (OFFICIAL, [0, "bowling"], "a list of names or of row numbers"),
        (OFFICIAL, [], "a list of names or of row numbers"),
        (
            OFFICIAL,
            NAMES[:4],
            r"different   head\.weight: expected float \[5, 512\], got float \[4",
        ),
        (OFFICIAL, "gone.txt", "expected a file of names, got 'gone.txt'"),
        ("numbers.txt", NAMES, "its numbers are not 0 to 4"),
        ("columns.txt", NAMES, "expected a file of names"),
        ("mapping.json", NAMES, "a dict"),
        ("broken.json", NAMES, "expected a file of names"),
    ],
)
def test_lists_that_do_not_fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    classes_from: Any,
    classes_to: Any,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("numbers.txt").write_text("".join(f"{name}\t{n + 1}\n" for n, name in enumerate(NAMES)))
    Path("columns.txt").write_text("a\tb\tc\n")
    Path("mapping.json").write_text('{"a": 0}')
    Path("broken.json").write_text('["a", ')
    model = build("uniformer_video_small")
    before = snapshot(model)
    torch.save(build("uniformer_video_small").state_dict(), "w.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, "w.pth", classes_from=classes_from, classes_to=classes_to)
    assert same(model.state_dict(), before)


def test_classes_need_a_classifier(tmp_path: Path) -> None:
    model = build("uniformer_dense_small")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="expected a classifier to put in order, got none"):
        load_checkpoint(model, tmp_path / "w.pth", classes_to=[0])
    with pytest.raises(CheckpointError, match="no use with head='drop'"):
        load_checkpoint(model, tmp_path / "w.pth", head="drop", classes_to=[0])


def test_names_go_with_the_classifier(tmp_path: Path) -> None:
    path = tmp_path / "named.safetensors"
    save_checkpoint(build("uniformer_small"), path, class_names=NAMES)
    assert load_checkpoint(build("uniformer_small"), path).class_names == tuple(NAMES)
    assert load_checkpoint(build("uniformer_small"), path, head="drop").class_names is None
    assert load_checkpoint(build("uniformer_dense_small"), path).class_names is None


def test_values_are_the_files(tmp_path: Path) -> None:
    path, model = tmp_path / "half.safetensors", build("uniformer_small").half()
    save_checkpoint(model, path)
    stored = load_file(path)
    assert same(stored, model.state_dict())
    assert stored["head.weight"].dtype == torch.float16
