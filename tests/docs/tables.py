"""Tables the documentation has of the code: ``python -m tests.docs.tables`` writes them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from uniformer.models.facts import FACTS, Facts, Published

from .pages import ROOT

DOCS = ROOT / "docs"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
PUBLIC = [
    "uniformer_kernels",
    "uniformer_kernels.blocks",
    "uniformer",
    "uniformer.data",
    "uniformer.explanations",
    "uniformer.profiling",
    "uniformer.weights",
]
"""Every module with names for users; what is in no ``__all__`` of theirs may change."""

FAMILIES = {
    "Image": lambda name: not any(s in name for s in ("video", "dense", "_tl", "v2", "xxs", "xs")),
    "Token labeling": lambda name: name.endswith("_tl"),
    "Video": lambda name: "video" in name and not name.endswith("xs"),
    "Lightweight": lambda name: name.endswith("xs") and "dense" not in name,
    "Dense": lambda name: "dense" in name,
    "UniFormerV2": lambda name: "v2" in name,
}
HEAD = (
    "| model | parameters | input | GMACs | keywords | published | figures | views |",
    "|---|---:|---|---:|---|---|---|---|",
)


def _row(name: str, facts: Facts, published: Published) -> str:
    keywords = ", ".join(f"`{key}={value!r}`" for key, value in facts.keywords.items())
    scores = ", ".join(f"{measure} {score}" for measure, score in published.scores.items())
    cells = [
        f"`{name}`",
        f"{facts.parameters:,}",
        "×".join(map(str, facts.input_size)),
        f"{facts.macs / 1e9:.2f}",
        keywords,
        published.dataset,
        scores,
        (published.views or "").replace("x", "×"),
    ]
    return f"| {' | '.join(cells)} |"


def _models() -> Iterator[str]:
    for family, belongs in FAMILIES.items():
        yield from ("", f"## {family}", "", *HEAD)
        for name in filter(belongs, FACTS):
            for facts in FACTS[name]:
                yield from (_row(name, facts, published) for published in facts.published)
    yield ""


def _summary(thing: object) -> str:
    """The first paragraph of a docstring, as Markdown."""
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return re.sub("::$", ".", paragraph).replace("``", "`")


def _names() -> Iterator[str]:
    for module in map(import_module, PUBLIC):
        yield from (
            "",
            f"## {module.__name__}",
            "",
            _summary(module),
            "",
            "| name | |",
            "|---|---|",
        )
        for name in sorted(module.__all__, key=str.lower):
            summary = _summary(getattr(module, name)).replace("|", "\\|")
            yield f"| `{name}` | {summary} |"
    yield ""


TABLES = {DOCS / "models.md": _models, DOCS / "api.md": _names}


def with_tables(page: Path) -> str:
    """A page with its tables made anew."""
    before, rest = page.read_text().split(BEGIN)
    return "\n".join([before + BEGIN, *TABLES[page](), END + rest.split(END)[1]])


if __name__ == "__main__":
    for page in TABLES:
        page.write_text(with_tables(page))
