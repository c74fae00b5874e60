"""Two processes that talk by gloo do what one does."""

from __future__ import annotations

import io
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from rich.console import Console
from uniformer.data import Batch, ResumableSampler, collate
from uniformer.engine.checkpoint import read_run
from uniformer.engine.distributed import DistributedError, World, join_world
from uniformer.engine.interruption import Interrupted
from uniformer.engine.settings import Settings, SettingsError
from uniformer.engine.train import train
from uniformer.engine.trainer import Trainer

from .fake import PLAIN, TINY, Clips, Sources, records, tiny

NORMED = {**TINY, "mixup": 0, "cutmix": 0, "clip_grad": None, "ema": None, "sync_batch_norm": True}
NORMED["keywords"] = {**TINY["keywords"], "drop_path_rate": 0.0}
CASES: dict[str, dict[str, Any]] = {
    "ddp": PLAIN,
    "fsdp": {**PLAIN, "parallel": "fsdp"},
    "sync_batch_norm": NORMED,
}


def batches(rank: int, size: int, parts: int = 1, uneven: bool = False) -> list[Batch]:
    """A process's share of eight clips, in ``parts`` batches; ``uneven`` leaves the first out."""
    data = Clips(8, broken=[0] if uneven else [])
    mine = [data[0, index] for index in range(rank, 8, size)]
    count = len(mine) // parts
    return [collate(mine[start : start + count]) for start in range(0, len(mine), count)]


def gradients(settings: Settings, world: World, given: list[Batch], total: int) -> dict[str, Any]:
    """The loss of a step and its gradients by name, whole."""
    torch.set_default_dtype(torch.float64)
    try:
        trainer = Trainer(settings, 4, world)
        trainer.optimizer.zero_grad = lambda: None
        given = [batch._replace(clips=batch.clips.double()) for batch in given]
        loss, _ = trainer.step(given, total, 0, 0.0)
        loss = world.sum(loss.item())[0] / world.size
        named = [(name, p.grad) for name, p in trainer.model.named_parameters()]
        whole = {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in named}
        return {"loss": torch.tensor(loss), **whole}
    finally:
        torch.set_default_dtype(torch.float32)


def process(rank: int, folder: Path) -> None:
    """One of two processes: everything this file looks at, for starting them takes seconds."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": (folder / "port").read_text()}
    torch.set_num_threads(1)
    quiet = Console(file=io.StringIO())
    with join_world("cpu") as world:
        assert (world.rank, world.size) == (rank, 2)
        found = {
            name: gradients(Settings(**case), world, batches(rank, 2), 8)
            for name, case in CASES.items()
        }
        found["uneven"] = gradients(Settings(**PLAIN), world, batches(rank, 2, 1, True), 7)
        found["accumulated"] = gradients(Settings(**PLAIN), world, batches(rank, 2, 2), 8)
        if world.is_main:
            torch.save(found, folder / "found.pt")

        # Of step 3 the second process has nothing: all leave it out, and none waits for another.
        sampler = ResumableSampler(16, training=True, rank=1, world_size=2)
        broken = [index for _, index in list(sampler)[4:6]]
        sources = Sources(Clips(16, broken), Clips(5, broken=[4]), 4)
        train(tiny(epochs=1), sources, folder / "whole", world=world, console=quiet)

        # The signal comes to one process only.
        asked = sources
        if rank == 1:
            sampler.set_epoch(0)
            key = list(sampler)[1]
            asked = Sources(Clips(16, broken, (*key, signal.SIGTERM)), sources.validation, 4)
        with pytest.raises(Interrupted) as caught:
            train(tiny(epochs=1), asked, folder / "cut", world=world, console=quiet)
        assert caught.value.signum == signal.SIGTERM
        train(tiny(epochs=1), sources, folder / "cut", world=world, resume=True, console=quiet)

        # Sharded, with an average, and saved in the middle for one process to go on with.
        sharded = tiny(epochs=1, parallel="fsdp")
        with pytest.raises(Interrupted):
            train(sharded, asked, folder / "sharded", world=world, console=quiet)
        # What goes wrong on the main process goes wrong on all.
        with pytest.raises(SettingsError, match="--resume"):
            train(tiny(), sources, folder / "whole", world=world, console=quiet)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes have worked in."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        (folder / "port").write_text(str(free.getsockname()[1]))
    mp.spawn(process, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("name", [*CASES, "uneven", "accumulated"])
def test_gradients_are_those_of_one_process(pair: Path, name: str) -> None:
    settings = Settings(**CASES.get(name, PLAIN))
    given, total = (batches(0, 1, 1, True), 7) if name == "uneven" else (batches(0, 1), 8)
    expected = gradients(settings, World(), given, total)
    found = torch.load(pair / "found.pt")[name]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] - value).norm() <= 1e-6 * value.norm() + 1e-12, key


def test_accumulation_is_the_large_batch() -> None:
    settings = Settings(**PLAIN)
    whole = gradients(settings, World(), batches(0, 1), 8)
    parts = gradients(settings, World(), batches(0, 1, 4), 8)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-9, atol=1e-12)
    assert len(batches(0, 1, 4)) == 4


def test_broken_batches_are_left_out_by_all(pair: Path) -> None:
    log = records(pair / "whole")
    assert [entry["step"] for entry in log if entry["kind"] == "step"] == [1, 2, 4]
    told = [entry["path"] for entry in log if entry["kind"] == "broken"]
    assert len(told) == len(set(told)) == 3
    assert log[-1]["broken"] == 3
    assert log[-1]["videos"] == 4
    saved = read_run(pair / "whole" / "checkpoint.pt")
    steps = {int(moments["step"]) for moments in saved["optimizer"]["state"].values()}
    assert steps == {3}


def test_interrupted_pair_ends_the_same(pair: Path) -> None:
    assert records(pair / "cut") == records(pair / "whole")
    cut, whole = (read_run(pair / name / "checkpoint.pt") for name in ("cut", "whole"))
    assert cut["world_size"] == 2
    assert all(torch.equal(cut["model"][key], value) for key, value in whole["model"].items())
    assert all(torch.equal(cut["average"][key], value) for key, value in whole["average"].items())


def test_one_process_goes_on_with_what_two_have_sharded(pair: Path) -> None:
    out, told = pair / "sharded", io.StringIO()
    assert read_run(out / "checkpoint.pt")["progress"]["step"] == 1
    done = records(out)
    sources = Sources(Clips(16), Clips(5), 4)
    figures = train(tiny(epochs=1), sources, out, resume=True, console=Console(file=told))
    assert "resumed by 1 processes, saved by 2" in told.getvalue()
    assert "parallel: 'fsdp', now 'ddp'" in told.getvalue()
    assert sources.training.taken == list(ResumableSampler(16, training=True))[4:]
    assert records(out)[: len(done)] == done
    assert figures["videos"] == 5


def test_batch_size_has_to_fit() -> None:
    sources = Sources(Clips(12), None, 4)
    with pytest.raises(SettingsError, match="multiple of 3 processes x accumulate=1, got 4"):
        train(tiny(), sources, "unused", world=World(0, 3))
    with pytest.raises(SettingsError, match="expected at most 12, the number of videos, got 16"):
        train(tiny(batch_size=16), sources, "unused")


def test_devices_that_are_not_there() -> None:
    with pytest.raises(DistributedError, match="got 'abacus'"), join_world("abacus"):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(DistributedError, match="got 0 devices"), join_world("cuda"):
            pass
