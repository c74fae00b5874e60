"""The operators' cases of ``uniformer_kernels.bench``, as one race or one benchmark each."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch

from uniformer_kernels.bench.case import OURS, Case
from uniformer_kernels.bench.cases import cases, find
from uniformer_kernels.bench.check import Judge, judge
from uniformer_kernels.bench.measure import FORWARD, PASSES, Setting, objection, turns

from .agreement import Rivals

_CPU = torch.device("cpu")
_SETTING = Setting(_CPU, compare=True)
_DTYPES = (torch.float32, torch.bfloat16)


def race(
    operator: str, case: str, rivals: tuple[str, ...], *, dtype: torch.dtype, backward: bool
) -> Rivals:
    """Calls of our operator and of rivals, by name.

    Raises:
        ValueError: one of them computes something else.
    """
    found = find(operator, case)
    return {name: _checked(found, name, dtype, backward) for name in (OURS, *rivals)}


def parametrized(*operators: str) -> Callable:
    """Decorator: a test for every case, precision, pass and rival of operators.

    The test gets ``benchmark`` and ``call``, what :func:`run` measures.
    """
    return pytest.mark.parametrize(
        "call",
        [
            pytest.param(
                (case, name, dtype, pass_ != FORWARD),
                id=f"{case.operator}: {case.name}, {_name(dtype)}, {pass_}, {name}",
            )
            for operator in operators
            for case in cases(operator)
            for dtype in _DTYPES
            for pass_ in PASSES[: 1 + bool(case.differentiable())]
            for name in _SETTING.rivals(case, dtype)
        ],
    )


def run(benchmark: Callable, call: tuple[Case, str, torch.dtype, bool]) -> None:
    """Measure one rival's call; skipped if it computes something else."""
    case, name, dtype, backward = call
    pass_ = PASSES[backward]
    benchmark.group = f"{case.operator}: {case.name}, {_name(dtype)}, {pass_}"
    try:
        checked = _checked(*call)
    except ValueError as error:
        if name == OURS:
            raise
        pytest.skip(str(error))
    benchmark(checked)


def _checked(case: Case, name: str, dtype: torch.dtype, backward: bool) -> Callable[[], object]:
    rival = _SETTING.rivals(case, dtype)[name]
    torch.compiler.reset()
    referee = _judge(case.operator, case.name, dtype, backward)
    if reason := objection(case, rival, referee, dtype, _CPU, backward=backward):
        raise ValueError(f"{case.operator}: {case.name}: {name}: {reason}")
    return turns(case, {name: rival}, dtype, _CPU, backward=backward)[name]


@lru_cache(maxsize=1)  # the rivals of a case come one after another
def _judge(operator: str, case: str, dtype: torch.dtype, backward: bool) -> Judge:
    return judge(find(operator, case), dtype, _CPU, backward=backward)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
