"""How memory grows: attention's with the tokens, not with their square. Nothing is timed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import uniformer_kernels as uk
from benchmarks import growth, memory
from benchmarks.baselines import onnxruntime
from uniformer_kernels import use_backend

HEADS, CHANNELS = 2, 16


def saved(tokens: int, backend: str) -> int:
    """What autograd keeps of one attention."""
    qkv = torch.randn(1, tokens, 3 * CHANNELS, requires_grad=True)
    with use_backend(backend):
        return memory.saved_bytes(lambda: uk.joint_attention(qkv, HEADS))


def test_what_attention_keeps_is_linear_in_tokens() -> None:
    kept = [saved(n, "cpu") for n in (256, 512, 1024)]
    assert kept[1] == 2 * kept[0]
    assert kept[2] == 4 * kept[0]
    plain = [saved(n, "reference") for n in (256, 512)]
    assert plain[1] > 3 * plain[0]  # the check can fail


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_attentions_peak_is_no_matrix_of_scores() -> None:
    tokens = 4096
    qkv = torch.randn(1, tokens, 3 * CHANNELS)
    scores = HEADS * tokens**2 * 4

    def peak(backend: str) -> int:
        with use_backend(backend), torch.inference_mode():
            uk.joint_attention(qkv[:, :64], HEADS)  # loads code
            return memory.peak(lambda: uk.joint_attention(qkv, HEADS))

    assert peak("cpu") < scores / 16
    assert peak("reference") > scores  # the check can fail


def test_every_family_runs() -> None:
    """Its smallest value, on meta tensors: keywords and shapes fit each other."""
    for family in growth.FAMILIES.values():
        value = growth.AXES[family.axis][0]
        for keywords in family.models(value).values():
            with torch.device("meta"), torch.inference_mode():
                model = growth.uniformer.create_model(**keywords).eval()
                result = model(torch.empty(family.shape(value)))
            assert len(result[0] if isinstance(result, list | tuple) else result) == 1


def test_growth_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    keywords = {"depths": (1, 1, 1, 1)}
    tiny = growth.Family(
        "resolution",
        lambda s: {"tiny": {"name": "uniformer_dense_small", **keywords}},
        lambda s: (1, 3, s, s),
    )
    monkeypatch.setitem(growth.FAMILIES, "tiny", tiny)
    monkeypatch.setitem(growth.AXES, "resolution", (32, 64))
    monkeypatch.setattr(growth, "ProcessPoolExecutor", _Here)
    json_, png = tmp_path / "a.json", tmp_path / "a.png"
    app = growth.typer.Typer()
    app.command()(growth.main)
    typed = ["--family", "tiny", "--rounds", "2", "--json", str(json_), "--plot", str(png)]
    result = CliRunner().invoke(app, typed)
    assert result.exit_code == 0, result.output
    rows = growth.json.loads(json_.read_text())["rows"]
    assert [(row["model"], row["resolution"]) for row in rows] == [("tiny", 32), ("tiny", 64)]
    assert all(row["seconds"] > 0 and row["bytes"] >= 0 for row in rows)
    assert png.read_bytes().startswith(b"\x89PNG")
    earlier = ["--family", "tiny", "--most", "1", "--also", str(json_), "--json", str(json_)]
    assert CliRunner().invoke(app, earlier).exit_code == 0
    assert growth.json.loads(json_.read_text())["rows"] == rows
    with pytest.raises(SystemExit, match=r"--family: expected some of video-xxs, .* got huge"):
        growth.main(["huge"])


class _Here:
    """A pool of no processes."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function, *args):
        self.found = function(*args)
        return self

    def result(self) -> object:
        return self.found


def test_onnx_runtime_computes_the_model() -> None:
    pytest.importorskip("onnxruntime")
    model = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3), torch.nn.GELU(), torch.nn.Flatten())
    x = torch.randn(1, 3, 4, 6, 6)
    run = onnxruntime.compiled(model, x)
    torch.testing.assert_close(run(x), model(x).detach())
    assert not torch.equal(run(2 * x), run(x))


def test_onnx_runtime_leaves_the_processor_to_the_next_rival() -> None:
    """Its threads would go on looking for work for 30 ms, on cores that the next one needs."""
    pytest.importorskip("onnxruntime")
    x = torch.randn(1, 8, 64, 64)
    run = onnxruntime.compiled(torch.nn.Conv2d(8, 8, 3), x)
    busy = []
    for _ in range(5):
        run(x)
        before = time.process_time()
        time.sleep(0.05)
        busy.append(time.process_time() - before)
    assert min(busy) < 0.005
