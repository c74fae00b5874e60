"""The TPAMI paper's throughput tables as presets of ``uniformer bench``.

The authors measured on an A100; how many samples at a time they do not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .models.facts import FACTS


@dataclass(frozen=True)
class Setting:
    """A row of a table.

    Args:
        model: its name.
        input_size: of a sample without channels.
        per_second: samples a second on an A100, of the authors.
        keywords: of ``create_model``.
    """

    model: str
    input_size: tuple[int, ...]
    per_second: int
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        size = "×".join(map(str, self.input_size))
        return " ".join([self.model, size, *(f"{k}={v}" for k, v in self.keywords.items())])


def _published(*models: str) -> Iterator[Setting]:
    """The settings whose throughput the authors give."""
    for name in models:
        for facts in FACTS[name]:
            for published in facts.published:
                if published.per_second:
                    yield Setting(name, facts.input_size, published.per_second, facts.keywords)


_ABLATION: list[tuple[dict[str, Any], int]] = [  # the part of the tokens kept, images a second
    ({"keep": 1.0}, 8342),
    ({"keep": 0.8}, 8452),
    ({"keep": 0.6}, 9094),
    ({"keep": 0.5}, 9382),
    ({"keep": 0.4}, 9692),
    ({"keep": 0.25}, 10162),
    ({"score": "mean"}, 9395),
    ({"running_mean": False}, 9283),
]

PRESETS: dict[str, tuple[Setting, ...]] = {
    "table11": tuple(_published("uniformer_xxs", "uniformer_xs")),
    "table12": tuple(_published("uniformer_video_xxs", "uniformer_video_xs")),
    "table23": tuple(Setting("uniformer_xxs", (160, 160), n, k) for k, n in _ABLATION),
}
"""Lightweight image models, lightweight video models, the ablation of the token shrinking."""
