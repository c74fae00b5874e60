"""The command line, as typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import uniformer
from typer.testing import CliRunner
from uniformer import cli


def test_models_lists_them_with_their_size() -> None:
    printed = CliRunner().invoke(cli.app, ["models"]).output
    assert all(name in printed for name in uniformer.list_models())
    (line,) = (line for line in printed.splitlines() if "uniformer_video_small" in line)
    assert "21,400,400" in line


def test_models_takes_a_pattern() -> None:
    printed = CliRunner().invoke(cli.app, ["models", "*video*"]).output
    assert "uniformer_video_base" in printed
    assert "uniformer_small_plus" not in printed


def test_demo_passes_what_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("uniformer.demo.run.run_demo", lambda *args: calls.append(args))
    typed = ["demo", "a.mp4", "--checkpoint", "w.pth", "--classes", "600", "--out", "there"]
    assert CliRunner().invoke(cli.app, typed).exit_code == 0
    assert CliRunner().invoke(cli.app, ["demo"]).exit_code == 0
    (video, checkpoint, out, settings), defaults = calls
    assert (video, checkpoint, out) == (Path("a.mp4"), Path("w.pth"), Path("there"))
    assert settings.num_classes == 600
    assert defaults[:3] == (None, None, Path("demo"))
    assert defaults[3].num_classes == 400


def test_a_bad_video_ends_with_a_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uniformer", "demo", "gone.mp4", "--out", "out"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "uniformer: path: expected a video file, got 'gone.mp4': no such file" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_bad_checkpoint_ends_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["uniformer", "demo", "--checkpoint", "gone.pth", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", typed)
    with pytest.raises(SystemExit, match=r"uniformer: checkpoint: .*'gone\.pth': no such file"):
        cli.main()
