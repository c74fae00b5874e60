"""What `make gpu` measured, as tables in Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..gpu_experiments import answers
from .rows import OURS
from .tables import PLAIN
from .targets import HEADLINES, TARGETS

Found = Mapping[str, Any]
"""A result file: the machine, and by stage its rows."""

_COMPARED = {"operators": "Operators", "models": "Models", "more_models": "More models"}
_COUNTERS = (  # of Nsight Compute's, those that tell memory, arithmetic and latency apart
    "Duration",
    "DRAM Throughput",
    "L2 Cache Throughput",
    "L1/TEX Cache Throughput",
    "Compute (SM) Throughput",
    "Issue Slots Busy",
    "Achieved Occupancy",
    "Registers Per Thread",
)


def performance(found: Found | None) -> str:
    """Targets and questions, measured or not; behind them whatever was measured."""
    parts = [
        table(("", "against", "figure", "reach", "aim"), "llrrr", targets(found)),
        table(("Question", "What the figures say"), "ll", questions(found)),
    ]
    if found:
        stages = {name: stage.get("rows", []) for name, stage in found["stages"].items()}
        for stage, title in _COMPARED.items():
            lines = [compared(row) for row in stages.get(stage, []) if "median_us" in row]
            parts += section(title, ("", "ours", "others", "peak memory, ours"), "lrlr", lines)
        parts += section(
            "Kernels started",
            ("", "forward", "training step"),
            "lrr",
            [launched(row) for row in stages.get("launches", [])],
        )
        parts += section(
            "The paper's throughput tables, in bfloat16",
            ("samples a second", "A100, paper", "at a time here", PLAIN, "ours"),
            "lrrrr",
            [throughput(row) for row in stages.get("tables", [])],
        )
        evidence = stages.get("evidence", [])
        parts += section(
            "UniFormer-S' operators, 16 clips in bfloat16: what the floor leaves to gain",
            ("", "calls", "one takes", "floor", "bound by", "to gain"),
            "lrrrlr",
            floors(evidence),
        )
        parts += section(
            "UniFormer-S' kernels",
            ("", "launches", "together", "of the pass"),
            "lrrr",
            [shares(row) for row in evidence if "share" in row],
        )
        parts += section(
            "Under Nsight Compute",
            ("the longest launch", "reaches", "advice"),
            "lll",
            [counters(row) for row in evidence if "figures" in row],
        )
        parts += [ceilings(stages.get("ceilings", [])), conditions(found)]
    return "\n\n".join(filter(None, parts))


def headlines(found: Found | None) -> str:
    """A few of the targets, for the README, once one of them was measured."""
    lines = [cells[:3] for cells in targets(found) if cells[0] in HEADLINES]
    if found is None or all(figure == "not measured" for _, _, figure in lines):
        return "No GPU has measured the Triton and CUDA kernels yet; `make gpu` does."
    head = (f"on an {found['machine']['gpu']}", "against", "")
    return table(head, "llr", lines) + "\n\n" + conditions(found)


def table(head: Sequence[str], sides: str, lines: Sequence[Sequence[str]]) -> str:
    """With a column a letter of `sides`, set to the left or to the right."""
    ruler = "|".join("---:" if side == "r" else "---" for side in sides)
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *lines))
    return "\n".join([first, f"|{ruler}|", *others])


def section(
    title: str, head: Sequence[str], sides: str, lines: Sequence[Sequence[str]]
) -> list[str]:
    """Of nothing measured nothing."""
    return [f"### {title}", table(head, sides, lines)] if lines else []


def targets(found: Found | None) -> list[list[str]]:
    measured: dict[str, dict[str, Any]] = defaultdict(dict)
    measured |= {row["what"]: row for row in rows(found) if "experiment" not in row}
    return [target.cells(measured) for target in TARGETS]


def questions(found: Found | None) -> list[list[str]]:
    return [[f"{number}. {what}", answer] for number, what, answer in answers(rows(found))]


def rows(found: Found | None) -> list[dict[str, Any]]:
    stages = found["stages"].values() if found else ()
    return [row for stage in stages for row in stage.get("rows", [])]


def compared(row: Mapping[str, Any]) -> list[str]:
    """What, our time, the others' and how many times ours those are, our memory."""
    medians, ours = row["median_us"], row["median_us"].get(OURS)
    others = [
        f"{name} {duration(theirs)}" + (f" ({theirs / ours:.2f}×)" if ours else "")
        for name, theirs in medians.items()
        if name != OURS
    ]
    others += [f"{name} failed" for name in row["failed"] if name != OURS]
    peak = row.get("peak_bytes", {}).get(OURS)
    memory = f"{peak / 1e6:,.0f} MB" if peak else ""
    return [row["what"], duration(ours) if ours else "failed", ", ".join(others), memory]


def launched(row: Mapping[str, Any]) -> list[str]:
    return [row["what"], str(row["forward_kernels"]), str(row["step_kernels"])]


def throughput(row: Mapping[str, Any]) -> list[str]:
    rates = (row["per_second"].get(name) for name in (PLAIN, OURS))
    shown = (f"{rate:,.0f}" if rate else "failed" for rate in rates)
    return [row["what"], f"{row['a100']:,}", str(row["batch"]), *shown]


def floors(evidence: Sequence[Mapping[str, Any]], most: int = 20) -> list[list[str]]:
    """Calls, what one takes and would at least; those first that have most to gain in a pass."""
    timed = [row for row in evidence if "floor_us" in row and OURS in row["median_us"]]
    gains = {
        row["what"]: row["calls"] * (row["median_us"][OURS] - row["floor_us"]) for row in timed
    }
    timed.sort(key=lambda row: -gains[row["what"]])
    return [
        [
            row["what"],
            str(row["calls"]),
            duration(row["median_us"][OURS]),
            duration(row["floor_us"]),
            row["bound"],
            duration(gains[row["what"]]),
        ]
        for row in timed[:most]
    ]


def shares(row: Mapping[str, Any]) -> list[str]:
    return [row["what"], str(row["launches"]), duration(row["total_us"]), f"{row['share']:.0%}"]


def counters(row: Mapping[str, Any]) -> list[str]:
    """Some of the figures, and the first sentences of the advice."""
    figures = [f"{name} {row['figures'][name]}" for name in _COUNTERS if name in row["figures"]]
    advice = [said.split(". ")[0].replace("|", "/") for said in row["advice"][:3]]
    return [row["what"], "; ".join(figures), "; ".join(advice)]


def duration(microseconds: float) -> str:
    return f"{microseconds:.1f} µs" if microseconds < 1e3 else f"{microseconds / 1e3:.2f} ms"


def ceilings(measured: Sequence[Mapping[str, Any]]) -> str:
    """What the chip does at most, in the same run."""
    rates = [
        f"{row['what']} {row[unit] / 1e12:.2f} {shown}"
        for row in measured
        for unit, shown in (("bytes_per_s", "TB/s"), ("flop_per_s", "TFLOP/s"))
        if unit in row
    ]
    return f"Ceilings in the same run: {', '.join(rates)}." if rates else ""


def conditions(found: Found) -> str:
    where = found["machine"]
    return (
        f"{where['date']}, {where['gpu']} ({where['gpu_memory']}, driver {where['driver']}), "
        f"PyTorch {where['torch']}, Python {where['python']}, commit {where['commit']}: "
        "`make gpu`. Medians of interleaved rounds."
    )
