"""What is timed is checked: the refusal of a rival that computes something else."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import groupby
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import benchmarks
import uniformer_kernels as uk
from tests.contract import check, draw
from uniformer_kernels import reference
from uniformer_kernels.backends import OPERATORS as OPERATORS_SERVED
from uniformer_kernels.bench import plain
from uniformer_kernels.bench.case import Case, Rival
from uniformer_kernels.bench.cases import OPERATORS, cases, find
from uniformer_kernels.bench.ceilings import Ceilings
from uniformer_kernels.bench.check import judge
from uniformer_kernels.bench.measure import FORWARD, Setting, measure, objection, traffic

CPU = torch.device("cpu")
LINEAR = Case(
    "linear",
    "small",
    {"x": (2, 7, 12), "weight": (20, 12), "bias": (20,)},
    reduction=20,
    work={"matmul": 2 * 14 * 12 * 20},
)


def says(rival: Rival, case: Case = LINEAR, *, backward: bool = False) -> str | None:
    referee = judge(case, torch.float32, CPU, backward=backward)
    return objection(case, rival, referee, torch.float32, CPU, backward=backward)


def test_what_computes_the_same_is_admitted() -> None:
    for backward in (False, True):
        assert says(LINEAR.ours, backward=backward) is None
        assert (
            says(
                Rival(
                    F.linear, lambda x, weight, bias: {"input": x, "weight": weight, "bias": bias}
                ),
                backward=backward,
            )
            is None
        )


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda x, weight, bias: F.linear(x, weight), "the result is off by"),
        (lambda x, weight, bias: F.linear(x, weight, bias)[:1], r"the result is \[1, 7, 20\]"),
        (lambda x, weight, bias: F.linear(x, weight, bias * torch.nan), "off by inf"),
        (lambda x, weight, bias: (F.linear(x, weight, bias), x), "returns 2 tensors where 1 are"),
        (lambda x, weight, bias: F.linear(x, bias), "RuntimeError: "),
    ],
)
def test_what_computes_something_else_is_refused(compute, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        assert says(Rival(compute)) is None, says(Rival(compute))


def test_a_wrong_gradient_is_refused() -> None:
    def stopped(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight) + bias + (bias.detach() - bias) / 2

    assert says(Rival(stopped)) is None
    assert "the gradient of bias is off by" in says(Rival(stopped), backward=True)


def test_ours_are_held_to_the_contract_and_rivals_to_four_times_as_much() -> None:
    referee = judge(LINEAR, torch.float32, CPU, backward=False)
    far = referee.exact[0] + 3 * referee.allowed[0]
    assert "is allowed" in objection(
        LINEAR, Rival(lambda **_: far, own=True), referee, torch.float32, CPU, backward=False
    )
    assert (
        objection(LINEAR, Rival(lambda **_: far), referee, torch.float32, CPU, backward=False)
        is None
    )


def test_official_token_choice_is_refused_in_bfloat16() -> None:
    """Its positions are numbers of the tokens' dtype, which ends at 256."""
    case = find("token_shrink", "XXS stage 3, 800 × 224, 400 kept")
    for dtype, refused in ((torch.float32, False), (torch.bfloat16, True)):
        referee = judge(case, dtype, CPU, backward=False)
        rival = case.rivals["sorted (official)"]
        assert bool(objection(case, rival, referee, dtype, CPU, backward=False)) == refused


def test_every_operator_has_cases() -> None:
    assert set(OPERATORS) == set(OPERATORS_SERVED)
    together = [operator for operator, _ in groupby(case.operator for case in cases())]
    assert together == list(OPERATORS)
    assert all(callable(getattr(uk, name)) for name in OPERATORS)
    names = [(case.operator, case.name) for case in cases()]
    assert len(set(names)) == len(names)


def test_make_bench_finds_every_operator() -> None:
    found = set()
    for path in Path(benchmarks.__file__).parent.glob("bench_*.py"):
        for thing in vars(import_module(f"benchmarks.{path.stem}")).values():
            for mark in getattr(thing, "pytestmark", ()):
                found |= {case.operator for ((case, *_),) in (p.values for p in mark.args[1])}
    assert found == set(OPERATORS)


SMALL = [
    "layer_norm",
    "fold_batch_norm",
    "token_shrink",
    "token_recover",
    "token_recover_with_importance",
    "window_attention",
]


@pytest.mark.parametrize("operator", SMALL)
def test_rivals_compute_what_the_operator_does(operator: str) -> None:
    case = list(cases(operator))[-1]
    referee = judge(case, torch.float32, CPU, backward=True)
    for name, rival in {"ours": case.ours, **case.rivals}.items():
        if name != "compiled" and rival.serves(torch.float32, CPU):
            found = objection(case, rival, referee, torch.float32, CPU, backward=True)
            assert found is None, f"{name}: {found}"


@pytest.mark.parametrize("name", ["channels-last", "NCDHW (official)", "dense, channels-last"])
@pytest.mark.parametrize("operator", ["depthwise_conv3d", "depthwise_linear"])
def test_depthwise_rivals_in_their_layouts(operator: str, name: str) -> None:
    case = next(iter(cases(operator)))
    if name not in case.rivals:
        assert operator == "depthwise_linear"
        return
    small = {
        n: (s[0], 2, 4, 5, s[-1]) if len(s) == 5 and n == "x" else s for n, s in case.shapes.items()
    }
    case = replace(case, shapes=small)
    backward = bool(case.differentiable())
    assert says(case.rivals[name], case, backward=backward) is None
    assert says(case.ours, case, backward=backward) is None


def test_backends_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that serves only when it is asked gets a row of its own."""
    assert LINEAR.backends(torch.float32, CPU, backward=True) == ("cpu", [])
    linear = OPERATORS_SERVED["linear"]
    yielding = replace(linear.implementations["cpu"], yields=lambda *_, **__: "it is new")
    monkeypatch.setitem(linear.implementations, "cpu", yielding)
    assert LINEAR.backends(torch.float32, CPU, backward=True) == ("reference", ["cpu"])
    setting, limits = Setting(CPU, rounds=1, sample=0), Ceilings(1e10, 1e11, {"float32": 1e11})
    rows = {r.rival: r for r in measure(LINEAR, torch.float32, FORWARD, setting, limits)}
    assert {name: row.backend for name, row in rows.items()} == {
        "ours": "reference",
        "reference": "torch",
        "cpu": "cpu",
    }
    assert all(row.refused is None and row.ratio > 0 for row in rows.values())


def test_taps_is_the_convolution() -> None:
    inputs = {"x": draw(2, 3, 5, 6, 7), "weight": draw(7, 1, 3, 5, 1), "bias": draw(7)}
    check(plain.taps, reference.depthwise_conv3d, inputs, reduction=180)


def test_traffic_is_counted_by_hand() -> None:
    x, w, b, y = 2 * 7 * 12, 20 * 12, 20, 2 * 7 * 20
    count = partial(traffic, LINEAR, torch.float32, CPU)
    assert count(backward=False) == 4 * (x + w + b + y)
    assert count(backward=True) == 4 * ((x + w + b + y) + (x + w + b + y) + (x + w + b))
    assert traffic(LINEAR, torch.bfloat16, CPU, backward=False) == 2 * (x + w + b + y)
