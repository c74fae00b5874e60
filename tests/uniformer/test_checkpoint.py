"""Checkpoints: every wrapping loads exactly; anything else leaves the model as it was."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import uniformer
from safetensors.torch import save_file
from torch import nn
from uniformer.weights import CheckpointError, load_checkpoint, read_state_dict


class Small(nn.Module):
    """A model with a parameter, float buffers and an integer one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 4, (3, 1, 1))
        self.norm = nn.BatchNorm3d(4)


@pytest.fixture
def model() -> Small:
    return Small()


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    state = {key: torch.randn(value.shape) for key, value in Small().state_dict().items()}
    return state | {"norm.num_batches_tracked": torch.tensor(7)}


def _snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


WRAPPINGS: dict[str, Callable[[dict], dict]] = {
    "bare": lambda s: s,
    "deit": lambda s: {"model": s, "epoch": 3, "max_accuracy": 82.9, "args": Namespace(lr=1e-3)},
    "pyslowfast": lambda s: {"epoch": 3, "model_state": s, "cfg": "TRAIN: {}"},
    "timm": lambda s: {"state_dict": s, "state_dict_ema": {}, "version": 2},
    "distributed": lambda s: {f"module.{key}": value for key, value in s.items()},
    "distributed timm": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping(model: Small, state: dict, tmp_path: Path, wrapping: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WRAPPINGS[wrapping](state), path)
    report = load_checkpoint(model, path)
    assert _same(model.state_dict(), state)
    assert report.path == str(path)
    assert set(report.taken) == set(state)


def test_safetensors(model: Small, state: dict, tmp_path: Path) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    load_checkpoint(model, tmp_path / "weights.safetensors")
    assert _same(model.state_dict(), state)


def test_values_take_the_models_dtype(model: Small, state: dict, tmp_path: Path) -> None:
    half = {key: v.half() if v.is_floating_point() else v for key, v in state.items()}
    torch.save(half, tmp_path / "half.pth")
    load_checkpoint(model, tmp_path / "half.pth")
    assert model.conv.weight.dtype == torch.float32
    assert torch.equal(model.conv.weight, state["conv.weight"].half().float())


def test_create_model_takes_a_checkpoint(tmp_path: Path) -> None:
    trained = uniformer.create_model("uniformer_video_small", num_classes=5)
    torch.save({"model_state": trained.state_dict()}, tmp_path / "video.pth")
    loaded = uniformer.create_model(
        "uniformer_video_small", num_classes=5, checkpoint=tmp_path / "video.pth"
    )
    assert _same(loaded.state_dict(), trained.state_dict())
    with pytest.raises(CheckpointError, match=r"head\.weight: expected float \[6, 512\]"):
        uniformer.create_model(
            "uniformer_video_small", num_classes=6, checkpoint=tmp_path / "video.pth"
        )


def test_every_difference_is_listed_and_nothing_is_loaded(
    model: Small, state: dict, tmp_path: Path
) -> None:
    before, path = _snapshot(model), tmp_path / "other.pth"
    del state["norm.weight"], state["norm.bias"]
    state |= {"conv.weight": torch.zeros(4, 2, 1, 1), "head.weight": torch.zeros(3, 4)}
    state["conv.bias"] = torch.zeros(4, dtype=torch.int32)
    torch.save(state, path)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(model, path)
    first, *problems = str(error.value).splitlines()
    assert first == f"checkpoint: expected the keys and shapes of Small, got {str(path)!r}:"
    assert problems == [
        "  missing     norm.weight float [4]",
        "  missing     norm.bias float [4]",
        "  unexpected  head.weight float [3, 4]",
        "  different   conv.weight: expected float [4, 2, 3, 1, 1], got float [4, 2, 1, 1]",
        "  different   conv.bias: expected float [4], got int32 [4]",
    ]
    assert _same(model.state_dict(), before)


def test_a_sparse_value_does_not_pass_for_a_dense_one(
    model: Small, state: dict, tmp_path: Path
) -> None:
    before = _snapshot(model)
    torch.save(state | {"norm.weight": torch.eye(4)[0].to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(CheckpointError, match=r"norm\.weight: expected float \[4\], got packed"):
        load_checkpoint(model, tmp_path / "sparse.pth")
    assert _same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("content", "came"),
    [
        ([torch.zeros(2)], "a list"),
        (torch.zeros(2), r"float \[2\]"),
        ({"epoch": 3, "lr": 0.1}, "a mapping with 2 keys: 'epoch', 'lr'"),
        ({"model": {"conv.weight": "text"}}, "a mapping with 1 keys: 'conv.weight'"),
        ({0: torch.zeros(2)}, "a mapping with 1 keys: 0"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: object, came: str) -> None:
    torch.save(content, tmp_path / "else.pth")
    with pytest.raises(CheckpointError, match=rf"expected tensors by name.*else\.pth': {came}"):
        read_state_dict(tmp_path / "else.pth")


def test_no_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pth': no such file"):
        read_state_dict(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="a directory"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
@pytest.mark.parametrize("part", [0, 0.05, 0.5, 0.99])
def test_a_truncated_file(
    model: Small, state: dict, tmp_path: Path, name: str, part: float
) -> None:
    before, path = _snapshot(model), tmp_path / name
    (torch.save if name.endswith("pth") else save_file)(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match=r"expected a whole .*cut"):
        load_checkpoint(model, path)
    assert _same(model.state_dict(), before)


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_a_text_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("these are no weights\n" * 20)
    with pytest.raises(CheckpointError, match=r"expected a whole .*text"):
        read_state_dict(tmp_path / name)


class Hostile:
    """Unpickled carelessly, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_is_refused_unexecuted(
    model: Small, state: dict, tmp_path: Path, legacy: bool
) -> None:
    before, path = _snapshot(model), tmp_path / "hostile.pth"
    content = {"model": state, "args": Hostile(tmp_path / "executed")}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="hostile"):
        load_checkpoint(model, path)
    assert not (tmp_path / "executed").exists()
    assert _same(model.state_dict(), before)
