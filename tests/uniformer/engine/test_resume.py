"""A run that is interrupted ends as one that is not."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import uniformer
from rich.console import Console
from safetensors.torch import load_file
from uniformer.engine.checkpoint import read_run, write_run
from uniformer.engine.interruption import Interrupted
from uniformer.engine.settings import SettingsError
from uniformer.engine.train import TrainingError, train
from uniformer.weights import CheckpointError

from .fake import Clips, Sources, records, sources, taken_at, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    out = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(tiny(), sources(), out, console=Console(file=io.StringIO()))
    torch.set_num_threads(threads)
    return out


def assert_same_run(out: Path, whole: Path) -> None:
    assert records(out) == records(whole)
    for name in ("best.safetensors", "last.safetensors"):
        mine, other = load_file(out / name), load_file(whole / name)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    mine, other = read_run(out / "checkpoint.pt"), read_run(whole / "checkpoint.pt")
    state = {key: mine["optimizer"]["state"][key] for key in other["optimizer"]["state"]}
    for key, moments in other["optimizer"]["state"].items():
        assert all(torch.equal(state[key][name], moments[name]) for name in moments)
    for part in ("model", "average"):
        assert all(torch.equal(mine[part][key], value) for key, value in other[part].items())


def test_what_a_run_leaves(whole: Path) -> None:
    log = records(whole)
    assert [entry["kind"] for entry in log] == [*["step"] * 3, "epoch"] * 2
    assert [entry["step"] for entry in log] == [1, 2, 3, 3, 4, 5, 6, 6]
    steps = [entry for entry in log if entry["kind"] == "step"]
    assert log[3]["loss"] == pytest.approx(sum(entry["loss"] for entry in steps[:3]) / 3)
    assert [entry["lr"] for entry in steps[:4]] == pytest.approx(
        [1e-6, 1e-6 + 999e-6 / 3, 1e-6 + 2 * 999e-6 / 3, 1e-3]
    )
    assert log[-1]["videos"] == 6
    assert len({entry["loss"] for entry in steps}) == 6
    keywords = tiny().keywords
    for name in ("best.safetensors", "last.safetensors"):
        model = uniformer.create_model("uniformer_video_xxs", num_classes=4, **keywords)
        assert uniformer.load_checkpoint(model, whole / name).class_names == tuple("abcd")
    assert (whole / "confusion.csv").read_text().splitlines()[0].endswith("a,b,c,d")
    uniformer.load_checkpoint(model, whole / "checkpoint.pt")


def test_resumes_after_sigkill(tmp_path: Path, whole: Path) -> None:
    # One step after the last checkpoint: the log has to forget it, and the validation before.
    epoch, index = taken_at(1, 5)
    command = [sys.executable, "-m", "tests.uniformer.engine.fake", tmp_path, epoch, index]
    killed = subprocess.run([*map(str, command)], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [entry["step"] for entry in records(tmp_path)] == [1, 2, 3, 3, 4]
    assert read_run(tmp_path / "checkpoint.pt")["progress"]["step"] == 3
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(b'{"kind": "st')  # cut in the middle of a line
    (tmp_path / ".unfinished-checkpoint.pt").write_bytes(b"half")
    train(tiny(), sources(), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)
    assert not list(tmp_path.glob(".unfinished*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("position", [1, 6])
def test_resumes_after_signal(
    tmp_path: Path, whole: Path, number: signal.Signals, position: int
) -> None:
    before = signal.getsignal(number)
    asked = sources(signal_at=(*taken_at(1, position), number))
    with pytest.raises(Interrupted) as caught:
        train(tiny(), asked, tmp_path)
    assert caught.value.signum == number
    assert signal.getsignal(number) is before
    # The step under way was finished, and nothing later begun.
    assert read_run(tmp_path / "checkpoint.pt")["progress"]["step"] == position // 4 + 1
    assert len(asked.training.taken) == 12 + 4 * (position // 4 + 1)
    again = sources()
    train(tiny(), again, tmp_path, resume=True)
    assert again.training.taken == asked_order()[4 * (position // 4 + 1) :]
    assert_same_run(tmp_path, whole)


def asked_order() -> list[tuple[int, int]]:
    return [taken_at(1, position) for position in range(12)]


def test_resumes_after_signal_in_validation(tmp_path: Path, whole: Path) -> None:
    asked = sources()
    asked = Sources(asked.training, Clips(6, signal_at=(0, 1, signal.SIGTERM)), 4, list("abcd"))
    with pytest.raises(Interrupted):
        train(tiny(), asked, tmp_path)
    assert [entry["kind"] for entry in records(tmp_path)] == ["step"] * 3
    train(tiny(), sources(), tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_records_of_several_steps_survive_an_interruption(tmp_path: Path) -> None:
    train(tiny(epochs=1, log_interval=2), sources(), tmp_path / "whole")
    asked = sources(signal_at=(*taken_at(0, 1), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(tiny(epochs=1, log_interval=2), asked, tmp_path / "cut")
    assert records(tmp_path / "cut") == []
    train(tiny(epochs=1, log_interval=2), sources(), tmp_path / "cut", resume=True)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert [entry["step"] for entry in records(tmp_path / "cut")] == [2, 3, 3]


def test_finished_run_stays(whole: Path) -> None:
    before = (whole / "log.jsonl").read_bytes()
    assert train(tiny(), sources(), whole, resume=True) == {}
    assert (whole / "log.jsonl").read_bytes() == before


def test_run_there_is_not_overwritten(whole: Path) -> None:
    with pytest.raises(SettingsError, match="--resume goes on with it"):
        train(tiny(), sources(), whole)


def test_resume_without_a_run_starts_one(tmp_path: Path) -> None:
    figures = train(tiny(epochs=1), sources(), tmp_path / "new", resume=True)
    assert figures["epoch"] == 1


def test_resume_with_other_settings(whole: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        train(tiny(lr=2e-3, seed=1, log_interval=5), sources(), whole, resume=True)
    assert "lr: 0.001, now 0.002" in str(caught.value)
    assert "seed: 0, now 1" in str(caught.value)
    assert "log_interval" not in str(caught.value)
    with pytest.raises(SettingsError, match="training_videos: 12, now 16"):
        train(tiny(), sources(16), whole, resume=True)


def test_resume_tells_what_may_differ(tmp_path: Path) -> None:
    asked = sources(signal_at=(*taken_at(0, 0), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(tiny(epochs=1), asked, tmp_path)
    told = io.StringIO()
    settings = tiny(epochs=1, log_interval=3, grad_checkpointing=True)
    train(settings, sources(), tmp_path, resume=True, console=Console(file=told))
    assert "log_interval: 1, now 3" in told.getvalue()
    assert "grad_checkpointing: False, now True" in told.getvalue()


def test_damaged_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"cannot read .*checkpoint\.pt"):
        train(tiny(), sources(), tmp_path, resume=True)
    torch.save({"model": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="expected one of a training run"):
        train(tiny(), sources(), tmp_path, resume=True)


def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    write_run(path, {"model": {"a": torch.zeros(3)}})
    before = path.read_bytes()
    # The kernel itself refuses to let a file grow, as on a full disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(CheckpointError, match=r"the one before is as it was: .*too large"):
            write_run(path, {"model": {"a": torch.zeros(1 << 20)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    write_run(path, {"model": {}})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_run(path, {"model": {"a": torch.ones(3)}})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_loss_that_is_not_finite(tmp_path: Path) -> None:
    class Infinite(Clips):
        def __getitem__(self, key: tuple[int, int]) -> object:
            sample = super().__getitem__(key)
            if key != taken_at(1, 5):
                return sample
            return sample._replace(clips=torch.full_like(sample.clips, float("nan")))

    poisoned = Sources(Infinite(12), None, 4)
    with pytest.raises(TrainingError, match=r"the loss of step 5 is nan.*is as it was"):
        train(tiny(), poisoned, tmp_path)
    saved = read_run(tmp_path / "checkpoint.pt")
    assert saved["progress"]["epoch"] == 0
    assert all(value.isfinite().all() for value in saved["model"].values())
    train(tiny(), Sources(Clips(12), None, 4), tmp_path, resume=True)
    assert not (tmp_path / "best.safetensors").exists()
    assert (tmp_path / "last.safetensors").exists()


def test_workers_change_nothing(tmp_path: Path, whole: Path) -> None:
    train(tiny(workers=2), sources(), tmp_path)
    assert_same_run(tmp_path, whole)


def test_groups_without_any_clip_are_left_out(tmp_path: Path) -> None:
    broken = [taken_at(0, position)[1] for position in range(4, 8)]
    settings = tiny(epochs=1, accumulate=2, log_interval=2)
    train(settings, sources(broken=broken), tmp_path)
    saved = read_run(tmp_path / "checkpoint.pt")
    assert {int(moments["step"]) for moments in saved["optimizer"]["state"].values()} == {2}
    assert [entry["step"] for entry in records(tmp_path) if entry["kind"] == "step"] == [2, 3]
    assert records(tmp_path)[-1]["broken"] == 4


def test_interrupted_before_anything_was_learnt(tmp_path: Path) -> None:
    """The optimiser has no state yet, and must not be given any by saving it."""
    broken = [taken_at(0, position)[1] for position in range(4)]
    asked = sources(broken=broken, signal_at=(*taken_at(0, 0), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(tiny(epochs=1), asked, tmp_path / "cut")
    train(tiny(epochs=1), sources(broken=broken), tmp_path / "cut", resume=True)
    train(tiny(epochs=1), sources(broken=broken), tmp_path / "whole")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_resumes_in_half_precision(tmp_path: Path, amp: str) -> None:
    settings = tiny(epochs=1, amp=amp, grad_checkpointing=True)
    train(settings, sources(), tmp_path / "whole")
    asked = sources(signal_at=(*taken_at(0, 1), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(settings, asked, tmp_path / "cut")
    train(settings, sources(), tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    paths = (tmp_path / name / "checkpoint.pt" for name in ("cut", "whole"))
    cut, whole = (read_run(path)["scaler"] for path in paths)
    assert cut == whole
    assert cut.get("scale", 1) < 2**16  # the first steps overflow, and it falls
    assert bool(cut) == (amp == "fp16")
