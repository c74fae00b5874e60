"""train, evaluate, predict, visualize, export and bench, as typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import uniformer
from typer.testing import CliRunner, Result
from uniformer import cli, export, throughput
from uniformer.data import Dense, Video
from uniformer.engine.evaluation import Protocol
from uniformer.engine.settings import make_settings
from uniformer.throughput import Setting

from . import tiny

NAMES = ["jump", "run", "walk"]
VIEWS = ["--frames", "4", "--size", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that know their model, and a few videos, one of them broken."""
    folder = tmp_path_factory.mktemp("commands")
    torch.manual_seed(0)
    model = tiny.light(num_classes=3)
    uniformer.save_checkpoint(model, folder / "m.safetensors", class_names=NAMES)
    uniformer.save_checkpoint(model, folder / "unnamed.safetensors")
    for number, name in enumerate(("walk", "jump")):
        (folder / "tree" / name).mkdir(parents=True)
        tiny.video(folder / "tree" / name / f"{number}.mp4", seconds=0.5 + number)
    (folder / "tree" / "jump" / "bad.mp4").write_text("no video")
    (folder / "empty.mp4").touch()
    return folder


def run(*typed: object) -> Result:
    return CliRunner().invoke(cli.app, [*map(str, typed)])


def fails(monkeypatch: pytest.MonkeyPatch, *typed: object) -> str:
    """The one line that a command ends with."""
    monkeypatch.setattr(sys, "argv", ["uniformer", *map(str, typed)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return str(ended.value)


def test_predict_tells_the_models_scores(folder: Path) -> None:
    path = folder / "tree" / "jump" / "1.mp4"
    typed = ["--checkpoint", folder / "m.safetensors", "--stride", 2, "--clips", 2, "--json"]
    result = run("predict", path, *typed, *VIEWS)
    assert result.exit_code == 0
    (found,) = json.loads(result.stdout)
    model = uniformer.create_model(
        "uniformer_video_xxs", **tiny.LIGHT, num_classes=3, checkpoint=folder / "m.safetensors"
    )
    clips = Protocol(4, 32, Dense(2), 2, 1, "logits").dataset([Video(path, 0)])[0].clips
    with torch.no_grad():
        expected = model.eval()(clips).mean(0).softmax(0)
    assert [entry["class"] for entry in found["classes"]] == expected.argsort().flip(0).tolist()
    for entry in found["classes"]:
        assert entry["name"] == NAMES[entry["class"]]
        assert entry["probability"] == pytest.approx(expected[entry["class"]].item(), rel=1e-4)


def test_a_broken_video_does_not_stop_the_others(folder: Path) -> None:
    good, bad = folder / "tree" / "walk" / "0.mp4", folder / "tree" / "jump" / "bad.mp4"
    paths = [bad, good, folder / "gone.mp4", folder / "empty.mp4"]
    result = run("predict", *paths, "--checkpoint", folder / "m.safetensors", *VIEWS, "--top", 2)
    assert result.exit_code == 1
    assert result.stdout.count("probability") == 1
    assert "0.mp4" in result.stdout
    assert sum(name in result.stdout for name in NAMES) == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("uniformer: ")]
    assert [any(word in line for word in ("bad", "gone", "empty")) for line in lines] == [True] * 3
    found = json.loads(
        run("predict", *paths, "--checkpoint", folder / "m.safetensors", *VIEWS, "--json").stdout
    )
    assert ["error" in entry for entry in found] == [True, False, True, True]
    assert "no such file" in found[2]["error"]


def test_evaluate_maps_folders_to_classes_by_name(folder: Path, tmp_path: Path) -> None:
    typed = ["uniformer_video_xxs", "--checkpoint", folder / "m.safetensors", "--workers", 0]
    result = run("evaluate", *typed, "--data", folder / "tree", "--json", "--out", tmp_path, *VIEWS)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures == json.loads((tmp_path / "evaluation.json").read_text())
    assert (figures["videos"], len(figures["broken"])) == (2, 1)
    assert figures["broken"][0]["path"].endswith("bad.mp4")
    confusion = json.loads((tmp_path / "confusion.json").read_text())
    assert confusion["classes"] == NAMES
    assert [sum(row) for row in confusion["confusion"]] == [1, 0, 1]  # jump and walk, no run
    shown = run("evaluate", *typed, "--data", folder / "tree", *VIEWS).stdout
    assert "Not counted, for they do not decode: 1" in shown
    assert f"{figures['top1']:.2f} %" in shown


@pytest.mark.parametrize("command", ["demo", "profile", "evaluate", "visualize"])
def test_a_folder_is_checked_before_the_work_for_it(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("what it finds would be lost")

    for name in (
        "demo.run.run_demo",
        "profiling.profile_blocks",
        "engine.evaluation.evaluate",
        "explanations.grad_cam",
    ):
        monkeypatch.setattr(f"uniformer.{name}", work)
    video, weights = folder / "tree" / "walk" / "0.mp4", ("--checkpoint", folder / "m.safetensors")
    typed = {
        "demo": [video],
        "profile": ["uniformer_xxs", "--input", "32x32"],
        "evaluate": ["uniformer_video_xxs", *weights, "--data", folder / "tree", *VIEWS],
        "visualize": [video, *weights, *VIEWS, "--class", 1],
    }
    message = fails(monkeypatch, command, *typed[command], "--out", folder / "empty.mp4" / "out")
    assert message.startswith("uniformer: out: expected a folder to write to, got ")


def test_evaluate_on_a_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = folder / "list.csv"
    listed.write_text("tree/walk/0.mp4,2\ntree/jump/1.mp4,0\n")
    typed = ["uniformer_video_xxs", "--checkpoint", folder / "unnamed.safetensors", *VIEWS]
    figures = json.loads(run("evaluate", *typed, "--data", listed, "--json", "--workers", 0).stdout)
    assert (figures["videos"], figures["broken"]) == (2, [])
    listed.write_text("tree/walk/0.mp4,3\n")
    message = fails(monkeypatch, "evaluate", *typed, "--data", listed)
    assert "line 1: expected a label below 3" in message
    message = fails(monkeypatch, "evaluate", *typed, "--data", folder / "tree")
    assert "a folder for each of the model's 3 classes, whose names are not known" in message


def test_bad_input_ends_with_a_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, weights = folder / "tree" / "walk" / "0.mp4", folder / "m.safetensors"
    labels = folder / "labels.txt"
    labels.write_text("one\ntwo\n")
    for typed, message in (
        (["predict", video, "--checkpoint", folder / "gone.pth"], "gone.pth': no such file"),
        (
            ["predict", video, "--checkpoint", weights, "--labels", labels],
            "labels: expected 3 names, one for each of the model's classes",
        ),
        (
            ["predict", video, "--checkpoint", weights, "--model", "uniformer_video_xs"],
            "expected the keys and shapes of VideoLightUniFormer",
        ),
        (["predict", video, "--checkpoint", weights, "--crops", 2], "crops: expected 1 or 3"),
        (["visualize", folder / "empty.mp4", "--checkpoint", weights], "an empty file"),
        (["visualize", video, "--checkpoint", weights, "--class", 3], "class: expected 0 to 2"),
        (["export", "uniformer_video_xx", "out.pt2"], "no model 'uniformer_video_xx'"),
        (["export", "uniformer_xxs", "out.onnx"], "expected a .pt2 name for torch"),
        (["export", "uniformer_xxs", "out.pt2", "--frames", 4], "frames: expected none for images"),
        (["export", "uniformer_xxs", "o.pt2", "--keyword", "keep"], "keyword: expected name=value"),
        (["bench", "uniformer_video_xxs", "--size", 1], "x: expected"),
        (["bench"], "bench: expected a MODEL or --preset, and not both"),
        (["bench", "uniformer_xxs", "--preset", "table11"], "and not both"),
        (["bench", "--preset", "table1"], "expected one of table11, table12, table23, got 'tab"),
        (["bench", "--preset", "table11", "--size", 96], "sizes are those of the paper"),
        (["bench", "uniformer_video_xxs", "--keyword", "keep=2"], "keep: expected 0 < keep <= 1"),
    ):
        assert message in fails(monkeypatch, *typed), typed


def test_visualize(folder: Path, tmp_path: Path) -> None:
    video = folder / "tree" / "walk" / "0.mp4"
    typed = ["--checkpoint", folder / "m.safetensors", "--out", tmp_path / "made", *VIEWS]
    result = run("visualize", video, *typed, "--class", 1, "--stage", 3)
    assert result.exit_code == 0, result.output
    made = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert made == ["0.gradcam.mp4", "0.gradcam.png", "0.tokens.png"]
    assert all(name in result.stdout for name in made)


def test_export_for_any_batch(folder: Path, tmp_path: Path) -> None:
    out, weights = tmp_path / "m.pt2", folder / "m.safetensors"
    typed = ["--checkpoint", weights, "--frames", 4, "--size", 32]
    result = run("export", "uniformer_video_xxs", out, *typed)
    assert result.exit_code == 0, result.output
    assert "any number × 3 × 4 × 32 × 32" in result.stdout
    program = torch.export.load(out)
    assert not [node for node in program.graph.nodes if "uniformer_kernels" in str(node.target)]
    model = tiny.light(num_classes=3, checkpoint=weights).eval()
    model.load_state_dict(uniformer.weights.read_state_dict(weights))
    clips = tiny.clip(5, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(clips), model(clips), rtol=1e-3, atol=1e-4)
    assert list(tmp_path.iterdir()) == [out]


def test_an_export_that_differs_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = torch.nn.Linear(4, 3), tmp_path / "m.pt2"
    out.write_text("the old one")
    monkeypatch.setitem(
        export._FORMATS,
        "torch",
        (lambda _, __, path: path.touch(), lambda _: lambda x: (torch.zeros(len(x), 3),)),
    )
    with pytest.raises(export.ExportError, match=r"within 0.0001 of the model's, got 1.0e\+00"):
        export.export(model, tiny.clip(2, 4), out, format="torch")
    assert out.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [out]


def test_bench_times_both_paths() -> None:
    keywords = [f"--keyword={name}={json.dumps(value)}" for name, value in tiny.LIGHT.items()]
    typed = ["uniformer_video_xxs", *keywords, "--frames", 2, "--size", 32, "--rounds", 1]
    figures = json.loads(run("bench", *typed, "--json", "--device", "cpu").stdout)
    assert figures["input"] == [2, 3, 2, 32, 32]
    for job in ("forward", "training step"):
        assert figures[job]["ratio"] == figures[job]["plain"] / figures[job]["kernels"] > 0
    assert "training step" in run("bench", *typed, "--device", "cpu").stdout


def test_bench_shows_the_papers_figures_beside_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [
        Setting("uniformer_video_xxs", (2, 32, 32), 367, tiny.LIGHT),
        Setting("uniformer_xxs", (32, 32), 9692, {**tiny.LIGHT, "keep": 0.4}),
    ]
    monkeypatch.setitem(throughput.PRESETS, "table12", settings)
    typed = ["--preset", "table12", "--batch", 3, "--rounds", 1, "--device", "cpu"]
    figures = json.loads(run("bench", *typed, "--json").stdout)
    assert [row["a100"] for row in figures["rows"]] == [367, 9692]
    for row in figures["rows"]:
        assert row["ratio"] == pytest.approx(row["kernels"] / row["plain"])
    shown = run("bench", *typed).stdout
    assert "367" in shown
    assert "9,692" in shown


def test_presets_are_the_papers_tables() -> None:
    """Rows as the specification has them: models, sizes, keywords, A100 samples a second."""
    images, videos, ablation = (throughput.PRESETS[f"table{n}"] for n in (11, 12, 23))
    assert [s.per_second for s in images] == [12886, 9382, 5766, 4446, 4492, 3506]
    assert {(s.input_size, s.per_second) for s in videos} == {
        ((4, 128, 128), 1878),
        ((4, 160, 160), 1384),
        ((8, 128, 128), 1125),
        ((8, 160, 160), 679),
        ((16, 128, 128), 591),
        ((16, 160, 160), 367),
        ((32, 160, 160), 160),
        ((32, 192, 192), 75),
    }
    assert [s.per_second for s in ablation] == [8342, 8452, 9094, 9382, 9692, 10162, 9395, 9283]
    with torch.device("meta"):
        for setting in (*images, *videos, *ablation):
            uniformer.create_model(setting.model, **setting.keywords)


def test_export_to_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    keywords, out = {**tiny.LIGHT, "depths": (1, 1, 1, 1)}, "m.onnx"
    model = uniformer.create_model("uniformer_xxs", **keywords, num_classes=3)
    error = export.export(
        tiny.stirred(model), tiny.clip(2, 3, 32, 32), tmp_path / out, format="onnx"
    )
    assert 0 < error < 1e-4
    session, images = onnxruntime.InferenceSession(tmp_path / out), tiny.clip(3, 3, 32, 32)
    (logits,) = session.run(None, {"input": images.numpy()})
    with torch.no_grad():
        expected = model.eval()(images)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-4)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    typed = ["export", "uniformer_xxs", tmp_path / "other.onnx", "--format", "onnx"]
    assert "pip install 'uniformer-kernels[export]'" in fails(monkeypatch, *typed)


def test_the_motion_task_is_trained_by_its_own_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    monkeypatch.setattr("uniformer.engine.sources.open_sources", lambda *_: None)
    monkeypatch.setattr(
        "uniformer.engine.train.train", lambda settings, *_, **__: trained.append(settings)
    )
    for more in ([], ["--recipe", "uniformer_xxs_k400_16_160"]):
        result = run("train", "--data", "motion", "--out", tmp_path, *more)
        assert result.exit_code == 0, result.output
    assert trained == [make_settings("motion", ()), make_settings("uniformer_xxs_k400_16_160", ())]
