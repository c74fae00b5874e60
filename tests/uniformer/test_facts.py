"""The facts hold for the models as they are built here."""

from __future__ import annotations

import pytest
import torch
import uniformer
from typer.testing import CliRunner
from uniformer import cli
from uniformer.models.facts import FACTS, Facts

from .macs import official_macs


def test_every_model_has_facts() -> None:
    assert sorted(FACTS) == uniformer.list_models()
    for name, settings in FACTS.items():
        assert all(facts.published for facts in settings), name
        for published in (p for facts in settings for p in facts.published):
            assert published.source, name
            assert all(20 < score < 100 for score in published.scores.values()), name


@pytest.mark.parametrize("name", FACTS)
def test_parameters_and_macs_are_those_of_the_table(name: str) -> None:
    for facts in FACTS[name]:
        with torch.device("meta"):
            model = uniformer.create_model(name, **facts.keywords).eval()
            x = torch.empty(1, 3, *facts.input_size)
        assert sum(p.numel() for p in model.parameters()) == facts.parameters
        assert official_macs(model, x) == facts.macs


def gflops_of_a_view(facts: Facts) -> list[float]:
    views = [p.views or "1x1x1" for p in facts.published]
    counts = [int(crops) * int(clips) for _, crops, clips in (v.split("x") for v in views)]
    return [p.gflops / n for p, n in zip(facts.published, counts, strict=True) if p.gflops]


@pytest.mark.parametrize("name", [name for name in FACTS if "dense" not in name])
def test_published_cost_is_the_counted_one(name: str) -> None:
    """But of the large model, whose published cost is another configuration's."""
    for facts in FACTS[name]:
        for gflops in gflops_of_a_view(facts):
            assert (gflops == pytest.approx(facts.macs / 1e9, rel=0.04)) == ("large" not in name)


def test_the_table_is_printed() -> None:
    lines = CliRunner().invoke(cli.app, ["models", "*video_small"]).output.splitlines()
    (first,) = (i for i, line in enumerate(lines) if "uniformer_video_small" in line)
    row = ["uniformer_video_small", "21,400,400", "16×224×224", "41.66", "80.8"]
    assert lines[first].split() == row
    assert lines[first + 1].split() == ["21,400,400", "8×224×224", "17.57", "78.4"]
