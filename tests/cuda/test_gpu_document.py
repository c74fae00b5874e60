"""What is written of a GPU's figures, from made-up ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks.gpu import ceilings, document, models, more_models, operators, sections, tables
from benchmarks.gpu.targets import HEADLINES, TARGETS
from uniformer_kernels.bench.timing import Samples

MACHINE = {
    "date": "2026-01-02",
    "gpu": "NVIDIA X",
    "gpu_memory": "1 MiB",
    "driver": "1.2",
    "torch": "2.11.0",
    "python": "3.12",
    "commit": "abc",
}
FMA, OFFICIAL = ceilings.MULTIPLY_ADDS, "official eager"
K5 = "depthwise k5 8×56×56×64 bf16, forward"
STEP = "UniFormer-S 16×224 training step, batch 32 bf16"


def result(**stages: list[dict[str, Any]]) -> dict[str, Any]:
    rows = {name: {"ok": True, "rows": found} for name, found in stages.items()}
    return {"machine": MACHINE, "stages": rows}


def timed(what: str, more: dict[str, Any] | None = None, **medians: float) -> dict[str, Any]:
    return {"what": what, "median_us": medians, "failed": {}} | (more or {})


def cells(found: dict[str, Any] | None, what: str, against: str) -> list[str]:
    (line,) = (c for c in sections.targets(found) if c[0] == what and c[1].startswith(against))
    return line[1:]


def test_nothing_measured() -> None:
    text = sections.performance(None)
    assert text.count("not measured") == len(TARGETS) + 10
    assert "###" not in text
    assert "No GPU has measured" in sections.headlines(None)


@pytest.mark.parametrize(
    ("row", "against", "want"),
    [
        (
            timed(K5, {"ratio": 2.5, "best": "cuDNN"}),
            "the best",
            ["the best rival (cuDNN)", "2.50×"],
        ),
        (
            timed(K5, {"flop_per_s": 30e12}),
            ceilings.MULTIPLY_ADDS,
            [ceilings.MULTIPLY_ADDS, "60.00 %"],
        ),
        (timed(STEP, ours=32 * 539 * 2.0), "539", ["539 µs a clip, an H200's floor", "2.00×"]),
        (timed(STEP, {"saved_bytes": {"ours": 1, OFFICIAL: 4}}), "activ", ["0.25×"]),
        (
            timed(STEP, ours=3.0, **{"official eager": 12.0}),
            "official",
            ["official eager", "4.00×"],
        ),
        (
            timed("token_shrink 800×224 bf16, batch 16", ours=32.0),
            "a sample",
            ["a sample", "2.00 µs", "≤ 6 µs", ""],
        ),
    ],
    ids=["rival", "ceiling", "floor", "saved", "official", "each"],
)
def test_targets(row, against, want) -> None:
    ceiling = {"what": FMA, "flop_per_s": 50e12}
    line = cells(result(ceilings=[ceiling], operators=[row]), row["what"], against)
    assert [cell for cell in line if cell in want] == want
    assert cells(None, row["what"], against)[1] == "not measured"


def test_times_of_another_row() -> None:
    both = K5.replace("forward", "forward + gradients")
    found = result(operators=[timed(K5, ours=10.0), timed(both, ours=30.0)])
    assert cells(found, both, K5) == [K5, "3.00×", "≤ 3.5×", ""]


def test_every_target_is_measured(monkeypatch) -> None:
    """By the stages that `make gpu` runs unasked."""
    for module in (operators, models):
        monkeypatch.setattr(module, "compare", lambda rivals, **_: {"ours": Samples([1e-6])})
    for name in "depthwise", "attention", "feed_forward", "tokens", "selection":
        monkeypatch.setattr(operators, name, lambda *_, **__: {})
    named = {row["what"] for row in operators.run()}
    for family in models.FIRST:
        *_, largest = family.batches
        for batch in family.batches:
            named |= {
                f"{family.name} inference, batch {batch} bf16, {how}"
                for how in ("as a graph", "from Python")
            }
        named.add(f"{family.name} training step, batch {largest} bf16")
    assert {target.what for target in TARGETS} <= named
    assert named >= HEADLINES
    families = {family.name for family in (*models.FIRST, *more_models.FAMILIES)}
    assert len(families) == 6


def test_every_section() -> None:
    models_ = timed(
        "S", {"peak_bytes": {"ours": 5e8}, "failed": {"eager": "no"}}, ours=10.0, compiled=2500.0
    )
    floors = [
        timed("near", {"calls": 9, "floor_us": 1.9, "bound": "copy"}, ours=2.0),
        timed("far", {"calls": 2, "floor_us": 10.0, "bound": "fma"}, ours=2000.0),
    ]
    share = {"what": "slow", "launches": 3, "total_us": 40.0, "share": 0.25}
    seen = {
        "what": "slow one",
        "figures": {"Duration": "4 us", "Achieved Occupancy": "50 %", "Threads": "1"},
        "advice": ["Use less. And more."],
    }
    text = sections.performance(
        result(
            operators=[timed("k7", ours=1.0, cuDNN=2.0)],
            models=[models_],
            more_models=[{"what": "compiled", "compiled_kernels": 3}, timed("B", ours=1.0)],
            launches=[{"what": "S, ours", "forward_kernels": 130, "step_kernels": 700}],
            tables=[
                {"what": "table11: a", "a100": 12886, "batch": 256, "per_second": {"ours": 2e4}}
            ],
            evidence=[*floors, share, seen],
            ceilings=[{"what": "copy", "bytes_per_s": 4.25e12}],
        )
    )
    for line in (
        "| k7 | 1.0 µs | cuDNN 2.0 µs (2.00×) |  |",
        "| S | 10.0 µs | compiled 2.50 ms (250.00×), eager failed | 500 MB |",
        "### More models\n",
        "| B | 1.0 µs |  |  |",
        "| S, ours | 130 | 700 |",
        "| table11: a | 12,886 | 256 | failed | 20,000 |",
        "| far | 2 | 2.00 ms | 10.0 µs | fma | 3.98 ms |\n"
        "| near | 9 | 2.0 µs | 1.9 µs | copy | 0.9 µs |",
        "| slow | 3 | 40.0 µs | 25% |",
        "| slow one | Duration 4 us; Achieved Occupancy 50 % | Use less |",
        "Ceilings in the same run: copy 4.25 TB/s.",
        "2026-01-02, NVIDIA X (1 MiB, driver 1.2), PyTorch 2.11.0, Python 3.12, commit abc",
    ):
        assert line in text
    for line in text.splitlines():  # every table is one
        assert not line.startswith("|") or line.endswith("|")


def test_the_document_and_the_readme_are_written(tmp_path, monkeypatch) -> None:
    pages = {"DOCUMENT": tmp_path / "page.md", "README": tmp_path / "readme.md"}
    for name, path in pages.items():
        path.write_text(f"before\n{document.BEGIN}\nold\n{document.END}\nafter\n")
        monkeypatch.setattr(document, name, path)
    results = [
        result(models=[timed(STEP, ours=1.0)], operators=[timed(K5, {"ratio": 3.0}, ours=1.0)]),
        result(models=[timed(STEP, ours=2.0, **{"official eager": 9.0})]),
    ]
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    for file, found in zip(files, results, strict=True):
        file.write_text(json.dumps(found))
    monkeypatch.setattr("sys.argv", ["document", *map(str, files)])
    document.main()
    for path in pages.values():
        text = path.read_text()
        assert text.startswith("before\n<!--")
        assert text.endswith("-->\nafter\n")
        assert "old" not in text
        assert f"| {STEP} | official eager | 4.50× |" in text  # the last of two results
    assert f"| {K5} | the best rival | 3.00× |" in pages["DOCUMENT"].read_text()
    results[1]["machine"] = MACHINE | {"gpu": "NVIDIA Y"}
    with pytest.raises(SystemExit, match="one GPU, got NVIDIA X and NVIDIA Y"):
        document.together(results)
    pages["README"].write_text("no markers")
    with pytest.raises(SystemExit, match="expected the lines"):
        document.refresh(None)


def test_the_papers_tables(monkeypatch) -> None:
    """Every setting, its rate by what a batch takes; the models' rivals run."""
    monkeypatch.setattr(tables, "rivals", lambda setting, batch: {})
    monkeypatch.setattr(tables, "compile_all", lambda launches: 0)
    monkeypatch.setattr(
        tables, "compare", lambda rivals, **_: {"ours": Samples([0.5]), tables.PLAIN: "no"}
    )
    found = list(tables.run())
    assert len(found) == len({row["what"] for row in found}) == 22
    assert {row["per_second"]["ours"] for row in found} == {512.0, 64.0}
    assert found[0]["a100"] == 12886
    assert all(row["failed"] == {tables.PLAIN: "no"} for row in found)


@pytest.mark.parametrize("name", ["table11", "table12"])
def test_a_tables_rivals_compute_the_same(name, monkeypatch) -> None:
    monkeypatch.setattr(tables, "DEVICE", "cpu")
    setting = tables.PRESETS[name][0]
    makes = tables.rivals(setting, 1)
    outputs = []
    for make in makes.values():
        torch.manual_seed(1)
        outputs.append(make()())
    assert makes.keys() == {"ours", tables.PLAIN}
    torch.testing.assert_close(*outputs, rtol=0.05, atol=0.05)
