"""`python -m uniformer_kernels.bench`, as typed, on small samples."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from uniformer_kernels.bench import against, ceilings, timing
from uniformer_kernels.bench.case import MATRIX, VECTOR
from uniformer_kernels.bench.ceilings import Ceilings
from uniformer_kernels.bench.timing import Samples

LIMITS = Ceilings(copy=1e10, fma=1e11, matmul={"float32": 2e11, "bfloat16": 8e11})


def bench(*typed: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "uniformer_kernels.bench", *map(str, typed)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    typed = ["joint_attention_with_score", "--only", "402", "--compare", "--pass", "forward"]
    quick = ["--rounds", 3, "--sample", 0.001, "--threads", 1]
    out = ["--json", tmp_path / "a" / "out.json", "--plot", tmp_path / "b" / "out.png"]
    done = bench(*typed, *quick, *out)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a" / "out.json").read_text())
    assert found["machine"]["threads"] == 1
    rows = {(row["dtype"], row["rival"]): row for row in found["rows"]}
    rivals = ("ours", "reference", "SDPA and a row", "materialised (official)")
    assert set(rows) == set(product(("float32", "bfloat16"), rivals))
    # The official softmax is in 16 bits, and so is the score that chooses the tokens.
    refused = rows.pop(("bfloat16", "materialised (official)"))
    assert refused["seconds"] is None
    assert "result 2 is off by" in refused["refused"]
    assert "materialised (official): refused: result 2 is off by" in done.stdout
    N, C = 402, 224
    for (dtype, rival), row in rows.items():
        assert row["refused"] is None
        assert row["backend"] == ("cpu" if rival == "ours" else "torch")
        assert row["bytes"] == N * 4 * C * (4 if dtype == "float32" else 2) + 4 * N
        assert row["flop"] == 4 * N * N * C + 2 * N * C
        assert len(row["rounds"]) == 3
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["seconds"] / 1e9)
        assert row["gflop_per_s"] == pytest.approx(row["flop"] / row["seconds"] / 1e9)
        assert row["quartiles"][0] <= row["seconds"] <= row["quartiles"][1]
        least = max(
            row["bytes"] / found["ceilings"]["copy"],
            row["flop"] / found["ceilings"]["matmul"][dtype],
        )
        assert row["ceiling"] == pytest.approx(least / row["seconds"])
        assert (row["ratio"] == 1) or rival != "ours"
    assert (tmp_path / "b" / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["depthwise"], "op: expected one of depthwise_conv3d, "),
        (["linear", "--dtype", "int8"], "--dtype: expected one of float32, "),
        (["linear", "--pass", "back"], "--pass: expected one of forward, "),
        (["linear", "--only", "S stage 9"], "--only: no case has 'S stage 9' in its name"),
        (["linear", "--against", "no-such-revision"], "--against: expected "),
        (
            ["linear", "--against", "HEAD", "--plot", "a.png"],
            "--plot: expected none with --against",
        ),
        (["linear", "--plot", "roof.gift"], "--plot: expected a name with .*png.*'roof.gift'"),
        (["linear", "--plot", f"{__file__}/a.png"], "--plot: cannot write to .*test_bench.py'"),
        (["linear", "--json", f"{__file__}/a.json"], "--json: cannot write to .*test_bench.py'"),
        (["linear", "--json", "."], "--json: expected a file, got the folder '.'"),
    ],
)
def test_bad_input_is_explained(
    typed: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uniformer_kernels.bench.__main__ import main, typer

    monkeypatch.setattr(sys, "argv", ["bench", *typed])
    with pytest.raises(SystemExit, match=said):
        typer.run(main)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.modules['typer'] = None; import uniformer_kernels.bench.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "typer is missing: pip install 'uniformer-kernels[bench]'" in done.stderr


def test_floor_is_the_slowest_of_memory_and_arithmetic() -> None:
    assert LIMITS.floor(1e10, {VECTOR: 1e10}, torch.float32) == (1.0, "copy")
    assert LIMITS.floor(1e9, {VECTOR: 1e11}, torch.bfloat16) == (1.0, "fma")
    assert LIMITS.floor(1e9, {MATRIX: 4e11}, torch.float32) == (2.0, "matmul")
    assert LIMITS.floor(1e9, {MATRIX: 4e11}, torch.bfloat16) == (0.5, "matmul")
    assert LIMITS.floor(1e9, {VECTOR: 1e11, MATRIX: 4e11}, torch.float32) == (3.0, "matmul")


def test_multiply_adds_are_all_done() -> None:
    """Twice as many take longer: the compiler has not found out that the chains are alike."""
    if (rate := ceilings.fma(torch.device("cpu"))) is not None:
        assert 1e8 < rate < 1e13
        from uniformer_kernels import _extension

        # Sixteen operands that tend to x s + y = s, thus 1/2 in every lane.
        total = _extension._introspect.multiply_adds(12 * 16 * 100)
        assert total == pytest.approx(0.5 * 12 * 16) or total % (0.5 * 12 * 4) == pytest.approx(0)


def test_rounds_are_compared_one_by_one() -> None:
    ours, theirs = Samples([1.0, 2.0, 10.0]), Samples([3.0, 6.0, 30.0])
    assert theirs.over(ours).values == [3.0, 3.0, 3.0]
    assert theirs.over(ours).spread == 0
    assert Samples([1.0, 2.0, 3.0, 4.0]).quartiles == (1.25, 3.75)


def test_every_rival_begins_a_round_and_has_as_many() -> None:
    called: list[str] = []
    rivals = {name: lambda name=name: called.append(name) for name in "abc"}
    found = timing.compare(rivals, rounds=6, sample=0.0)
    assert [len(samples.values) for samples in found.values()] == [6, 6, 6]
    rounds = called[-18:]
    assert [rounds[i] for i in range(0, 18, 3)] == ["a", "b", "c", "a", "b", "c"]


def test_buffers_take_turns_and_do_not_fit_the_cache() -> None:
    called: list[int] = []
    turn = timing.rotating([lambda i=i: called.append(i) for i in range(3)])
    for _ in range(7):
        turn()
    assert called == [0, 1, 2, 0, 1, 2, 0]
    size = 2**20
    assert timing.copies(size) * size >= min(2 * timing.last_cache(), 2**29)
    assert timing.copies(2**40) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the heap is glibc's")
def test_freed_memory_is_kept() -> None:
    """In a process of its own, whose heap it changes: a block comes back without new pages."""
    code = """if True:
        import resource, torch
        from uniformer_kernels.bench import timing
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                torch.ones(2**22)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        timing.keep_heap()
        faults()
        print(faults())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4096  # what one block of 16 MiB has; ten anew have ten times that


def test_against_needs_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(against.RevisionError, match="expected a git checkout of the project"):
        against.resolve("HEAD", tmp_path)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout whose second commit cannot be built."""

    def git(*command: str) -> None:
        me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        subprocess.run(["git", *me, *command], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "uniformer_kernels").mkdir()
    (tmp_path / "uniformer_kernels" / "__init__.py").touch()
    for setup in ("", "import sys; sys.exit('no compiler here')"):
        (tmp_path / "setup.py").write_text(setup)
        git("add", "-A")
        git("commit", "-q", "-m", "one more")
    return tmp_path


def test_against_builds_a_revision_and_takes_it_away(project: Path) -> None:
    first, second = (against.resolve(revision, project) for revision in ("HEAD~1", "HEAD"))
    with against.checkout(first, project) as tree:
        assert (tree / "setup.py").read_text() == ""
    assert not tree.exists()
    failed = pytest.raises(against.RevisionError, match="cannot be built:\nno compiler here")
    with failed, against.checkout(second, project):
        pass
    (project / "uniformer_kernels" / "_C.abi3.so").write_text("built")
    with against.checkout(second, project) as tree:  # the same sources: nothing to build
        assert (tree / "uniformer_kernels" / "_C.abi3.so").read_text() == "built"
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=project, capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.splitlines()) == 1


def test_workers_answer_in_turn() -> None:
    """Two processes of this very tree: the protocol, and that each has its own package."""
    with against._worker(against.ROOT, 1) as worker:
        case = {"operator": "fold_batch_norm", "case": "S stage 1 fc1, 64 → 256", "batch": 1}
        how = {"dtype": "float32", "pass": "forward", "device": "cpu", "sample": 0.0}
        assert worker.ask(**case, **how) == {"refused": None}
        assert worker.ask()["seconds"] > 0
        refused = worker.ask(**case, **how | {"dtype": "int8"})["refused"]
        assert refused.startswith("TypeError: fold_batch_norm: weight: expected one of")
    ended = pytest.raises(against.RevisionError, match="a measuring process ended")
    with against._worker(Path(__file__).parent, 1) as stranger, ended:
        stranger.ask(**case, **how)
