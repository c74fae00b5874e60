"""One case in one precision, forward or with gradients: check the rivals, time them, count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import graphs, timing
from .case import OURS, REFERENCE, Call, Case, Rival, Tensors, differentiated, reached
from .ceilings import Ceilings
from .check import Judge, judge, results
from .timing import Samples

FORWARD, BACKWARD = "forward", "forward+backward"
PASSES = (FORWARD, BACKWARD)

_SLACK = 4  # what computes something else is off by far more


@dataclass
class Row:
    """A rival's figures.

    Args:
        seconds: the median of a call; with `quartiles`, of the rounds. None if `refused`.
        ratio: how many times longer than ours, the median of the rounds' ratios.
        gb_per_s: bytes that have to move, inputs and results once, by the time.
        gflop_per_s: operations of the equation by the time; a rival may do more.
        ceiling: the part of the machine's own ceiling that is reached.
        bound: which ceiling that is.
        refused: why there are no figures.
    """

    operator: str
    case: str
    dtype: str
    pass_: str
    rival: str
    backend: str
    bytes: float
    flop: float
    seconds: float | None = None
    quartiles: tuple[float, float] | None = None
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    gb_per_s: float | None = None
    gflop_per_s: float | None = None
    ceiling: float | None = None
    bound: str | None = None
    refused: str | None = None
    rounds: list[float] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        row = asdict(self)
        return {"pass" if name == "pass_" else name: value for name, value in row.items()}


@dataclass(frozen=True)
class Setting:
    """How the cases are measured.

    Args:
        device: where.
        compare: whether what others offer takes part, besides the reference.
        rounds: timings of each rival.
        sample: seconds a timing lasts at least.
        batch: clips or images of a call.
    """

    device: torch.device
    compare: bool = False
    rounds: int = 21
    sample: float = 0.02
    batch: int = 1

    def rivals(self, case: Case, dtype: torch.dtype) -> dict[str, Rival]:
        others = {n: r for n, r in case.rivals.items() if r.serves(dtype, self.device)}
        return {OURS: case.ours, REFERENCE: case.plain} | (others if self.compare else {})


def measure(
    case: Case, dtype: torch.dtype, pass_: str, setting: Setting, ceilings: Ceilings
) -> list[Row]:
    """Figures of all rivals, ours first.

    A rival that fails or computes something else gets a row that says so.
    """
    backward = pass_ == BACKWARD
    torch.compiler.reset()  # compiled rivals of other shapes count against a limit
    backend, others = case.backends(dtype, setting.device, backward=backward)
    rivals = setting.rivals(case, dtype) | {name: case.asked_of(name) for name in others}
    bytes_, work = traffic(case, dtype, setting.device, backward=backward), dict(case.work)
    if backward:
        work = {unit: count * (1 + case.gradients) for unit, count in work.items()}
    names = str(dtype).removeprefix("torch.")
    rows = {
        name: Row(
            case.operator,
            case.name,
            names,
            pass_,
            name,
            (backend or "") if name == OURS else name if name in others else "torch",
            bytes_,
            sum(work.values()),
        )
        for name in rivals
    }
    referee = judge(case, dtype, setting.device, backward=backward)
    for name, rival in rivals.items():
        rows[name].refused = objection(
            case, rival, referee, dtype, setting.device, backward=backward
        )
    admitted = {name: rival for name, rival in rivals.items() if rows[name].refused is None}
    found = _times(case, admitted, dtype, setting, backward=backward)
    floor, bound = ceilings.floor(bytes_, work, dtype)
    for name, samples in found.items():
        row = rows[name]
        if isinstance(samples, str):
            row.refused = samples
            continue
        row.seconds, row.quartiles, row.rounds = (
            samples.median,
            samples.quartiles,
            [*samples.values],
        )
        row.gb_per_s = bytes_ / row.seconds / 1e9
        row.gflop_per_s = row.flop / row.seconds / 1e9
        row.ceiling, row.bound = floor / row.seconds, bound
        if isinstance(ours := found.get(OURS), Samples):
            ratios = samples.over(ours)
            row.ratio, row.ratio_quartiles = ratios.median, ratios.quartiles
    return list(rows.values())


def objection(
    case: Case,
    rival: Rival,
    referee: Judge,
    dtype: torch.dtype,
    device: torch.device,
    *,
    backward: bool,
) -> str | None:
    """Why a rival is not to be reported: it fails, or computes something else.

    Ours are held to the contract; what others' rounding is worse is theirs.
    """
    slack = 1 if rival.own else _SLACK
    try:
        got = results(case, rival, dtype, device, backward=backward)
        return referee.objection(got, slack=slack)
    except Exception as error:  # whatever it is, it is the rival's, and goes into its row
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _times(
    case: Case,
    rivals: Mapping[str, Rival],
    dtype: torch.dtype,
    setting: Setting,
    *,
    backward: bool,
) -> Mapping[str, Samples | str]:
    if setting.device.type == "cuda":
        makes = {
            name: partial(_made, case, rival, dtype, setting.device, backward)
            for name, rival in rivals.items()
        }
        return graphs.compare(makes, rounds=setting.rounds)
    calls = turns(case, rivals, dtype, setting.device, backward=backward)
    return timing.compare(calls, rounds=setting.rounds, sample=setting.sample)


def stopwatch(
    case: Case, dtype: torch.dtype, setting: Setting, *, backward: bool
) -> Callable[[], float]:
    """Times our call: seconds, anew each time it is called.

    Raises:
        ValueError: it computes something else.
    """
    referee = judge(case, dtype, setting.device, backward=backward)
    if reason := objection(case, case.ours, referee, dtype, setting.device, backward=backward):
        raise ValueError(reason)
    if setting.device.type == "cuda":
        make = partial(_made, case, case.ours, dtype, setting.device, backward)
        replay, count = graphs.replay(make)
        return lambda: graphs.seconds(replay, head_start=True) / count
    call = turns(case, {OURS: case.ours}, dtype, setting.device, backward=backward)[OURS]
    repeats = timing.fill(call, setting.sample)
    return lambda: timing.seconds(call, repeats)


def turns(
    case: Case,
    rivals: Mapping[str, Rival],
    dtype: torch.dtype,
    device: torch.device,
    *,
    backward: bool,
) -> dict[str, Call]:
    """The rivals' calls, each time on other buffers, of which there are more than caches hold.

    Rivals of the same layout share them: they come round to the first one after many calls.
    """
    count = timing.copies(sum(t.nbytes for t in case.inputs(dtype, device).values()))
    shared: dict[Callable[..., Tensors], tuple[list[Tensors], list[str]]] = {}
    calls = {}
    for name, rival in rivals.items():
        if rival.layout not in shared:
            tensors, sources = _laid_out(case, rival, dtype, device, backward)
            shared[rival.layout] = [_cloned(tensors) for _ in range(count)], sources
        buffers, sources = shared[rival.layout]
        ys = reached(rival.compute, buffers[0], sources)
        calls[name] = timing.rotating(
            [
                differentiated(rival.compute, own, sources, [torch.randn_like(y) for y in ys])
                for own in buffers
            ]
        )
    return calls


def _made(
    case: Case, rival: Rival, dtype: torch.dtype, device: torch.device, backward: bool
) -> Call:
    """A rival's call on buffers of its own."""
    tensors, sources = _laid_out(case, rival, dtype, device, backward)
    ys = reached(rival.compute, tensors, sources)
    return differentiated(rival.compute, tensors, sources, [torch.randn_like(y) for y in ys])


def _laid_out(
    case: Case, rival: Rival, dtype: torch.dtype, device: torch.device, backward: bool
) -> tuple[Tensors, list[str]]:
    """The case's tensors as a rival takes them, and which of these are to have gradients."""
    wanted = case.differentiable() if backward else ()
    inputs = {n: t.requires_grad_(n in wanted) for n, t in case.inputs(dtype, device).items()}
    tensors = rival.layout(**inputs)
    return tensors, [name for name, t in tensors.items() if t.requires_grad]


def _cloned(tensors: Tensors) -> Tensors:
    return {name: t.detach().clone() for name, t in tensors.items()}


def traffic(case: Case, dtype: torch.dtype, device: torch.device, *, backward: bool) -> int:
    """Bytes that have to move at least: each argument and result once, and again for gradients.

    Backward reads the results' gradients and the arguments, and writes the arguments' gradients.
    """
    tensors = case.inputs(dtype, device)
    read = sum(t.nbytes for t in tensors.values())
    written = sum(t.nbytes for t in _shapes(case, tensors))
    if not backward:
        return read + written
    gradients = sum(tensors[name].nbytes for name in case.differentiable())
    return 2 * read + 2 * written + gradients


def _shapes(case: Case, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The results, without their numbers."""
    meta = {name: t.to("meta") for name, t in tensors.items()}
    with torch.no_grad():
        found = case.plain.compute(**meta)
    return [t for t in ((found,) if isinstance(found, Tensor) else found) if t is not None]
