"""Where the time of a pass on a GPU goes, as far as it can be told without one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import uniformer_kernels as uk
from benchmarks.gpu import evidence, floors, nsight
from uniformer_kernels.bench.ceilings import Ceilings
from uniformer_kernels.bench.timing import Samples

CEILINGS = Ceilings(copy=1e12, fma=1e13, matmul={"float32": 1e13, "bfloat16": 1e14})


def test_kinds_of_a_pass() -> None:
    """Alike calls are one kind; views cost nothing; backward is seen."""
    x, weight = torch.randn(6, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)

    def call() -> None:
        y = uk.linear(uk.linear(x, weight), weight).view(3, 8)
        y.exp().sum().backward()

    found = {str(kind): kind for kind in floors.kinds(call)}
    product = found.pop("product 6×4, 4×4")
    assert product.calls >= 2
    assert product.flop == 2 * 6 * 4 * 4
    assert product.bytes == 4 * (6 * 4 + 4 * 4 + 6 * 4)
    assert found["weight_gradient 6×4, 6×4"].calls == 2
    assert found["exp 3×8"].calls == 1
    assert found["exp 3×8"].flop == 0
    assert not any("view" in name for name in found)


@pytest.mark.parametrize(
    ("operator", "flop", "want"),
    [
        ("linear", 0, (6e-6, "copy")),
        ("linear", 10**9, (1e-5, "matmul")),
        ("depthwise_conv3d", 10**9, (1e-4, "fma")),
    ],
)
def test_floor(operator, flop, want) -> None:
    """Products run on tensor cores, depthwise convolutions on vector units."""
    function = type("Function", (), {"_opname": operator})
    index, x = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bfloat16)
    kind = floors.Kind(function, (index, x), {}, bytes=6 * 10**6, flop=flop)
    assert kind.floor(CEILINGS) == want
    assert str(kind) == f"{operator} 2, 2"


def test_an_operator_alone(monkeypatch) -> None:
    """On copies: what it changes in place does not meet the next call."""
    given = torch.zeros(3)

    def compare(rivals, **_):
        (make,) = rivals.values()
        assert torch.equal(make()(), torch.ones(3))
        return {"ours": Samples([2e-6])}

    monkeypatch.setattr(floors, "compare", compare)
    kind = floors.Kind(torch.ops.aten.add_.Scalar, (given, 1), {}, bytes=24, flop=0, calls=5)
    row = kind.measure("inference", CEILINGS)
    assert row["what"] == "inference: add_ 3"
    assert row["calls"] == 5
    assert row["floor_us"] == pytest.approx(24e-6)
    assert torch.equal(given, torch.zeros(3))


STARTED = {
    "inference": [("a", 1.0), ("b", 5.0), ("a", 3.0)],
    "training": [("c", 2.0), ("a", 9.0), ("a", 1.0), ("d", 0.5), ("Memset ", 9.0)],
}


def test_the_slowest_kernels() -> None:
    assert evidence.slowest(STARTED) == [
        ("training", "a"),
        ("inference", "b"),
        ("training", "c"),
        ("training", "d"),
    ]
    assert evidence.longest(STARTED["inference"], "a") == 1
    rows = list(evidence.shares("training", STARTED["training"]))
    assert [(r["kernel"], r["launches"], r["total_us"]) for r in rows] == [
        ("a", 2, 10.0),
        ("Memset ", 1, 9.0),
        ("c", 1, 2.0),
        ("d", 1, 0.5),
    ]
    assert rows[0]["share"] == 10 / 21.5


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("_linear_kernel", "_linear_kernel"),
        ("void at::native::elementwise<4, at::native::F<int>>(int)", "elementwise"),
        ("void uk::cuda::(anonymous namespace)::fma<__nv_bfloat16, 5>(uk::A<3>)", "fma"),
        ("Memcpy DtoD (Device -> Device)", "Memcpy DtoD "),
    ],
    ids=["triton", "template", "anonymous", "copy"],
)
def test_bare_names(name, bare) -> None:
    assert nsight.base(name) == bare


CSV = """==PROF== Connected to process 7
a line of the program
"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value","Rule Description"
"0","a","Speed","Duration","us","35.2",""
"0","a","Speed","DRAM Throughput","%","81.0",""
"0","a","Speed","","","","The chip, it is said, waits."
==PROF== Disconnected
"""


@pytest.fixture
def ncu(tmp_path: Path, monkeypatch) -> Path:
    """In place of Nsight Compute: what to print; its arguments lie beside."""
    program, says = tmp_path / "ncu", tmp_path / "says"
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"open({str(tmp_path / 'asked')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        f"print(open({str(says)!r}).read())\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    return says


def test_what_nsight_compute_says(ncu: Path) -> None:
    ncu.write_text(CSV)
    assert nsight.look("a", 4, ["program", "training"]) == {
        "figures": {"Duration": "35.2 us", "DRAM Throughput": "81.0 %"},
        "advice": ["The chip, it is said, waits."],
    }
    asked = (ncu.parent / "asked").read_text()
    assert "--kernel-name a --launch-skip 4 --launch-count 1" in asked
    assert "--clock-control none" in asked
    assert asked.endswith("program training")


def test_why_nsight_compute_says_nothing(ncu: Path, monkeypatch) -> None:
    ncu.write_text("==ERROR== no permission\n")
    assert nsight.look("a", 0, []) == {"failed": {"ncu": "==ERROR== no permission"}}
    monkeypatch.setenv("PATH", "")
    assert "ncu" in nsight.look("a", 0, [])["failed"]["ncu"]


def test_every_row(monkeypatch, ncu: Path) -> None:
    """Operators and kernels of both passes, then the three slowest kernels."""
    ncu.write_text(CSV)
    monkeypatch.setattr(evidence, "small", lambda pass_: torch.ones(2).exp)
    monkeypatch.setattr(evidence.ceilings, "measure", lambda *_: CEILINGS)
    monkeypatch.setattr(floors, "compare", lambda *_, **__: {"ours": Samples([1e-6])})
    passes = iter(STARTED.values())
    monkeypatch.setattr(evidence, "kernels", lambda call: next(passes))
    assert [row["what"] for row in evidence.run()] == [
        *("inference: exp 2", "inference, kernel b", "inference, kernel a"),
        *("training: exp 2", *(f"training, kernel {name}" for name in ("a", "Memset ", "c", "d"))),
        *(f"{pass_}, Nsight Compute: {name}" for pass_, name in evidence.slowest(STARTED)[:3]),
    ]
