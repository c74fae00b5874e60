"""The documentation as the tests see it: its pages, their code, headings and links.

Python blocks of a page run one after another in one namespace. What a reader needs not see stands
in comments, which run in their place::

    <!-- run
    x = torch.randn(1, 3, 4, 32, 32)
    -->

There ``_`` is the value of the expression the block before ended with. A block after
``<!-- not run: REASON -->`` is only compiled.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

_CODE = re.compile(
    r"^<!-- run\n(?P<hidden>.*?)^-->$"
    r"|^(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```python\n(?P<shown>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_FENCED = re.compile(r"^```.*?^```$|<!--.*?-->", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """Code of a page: its first line's number, and why it is not run, if it is not."""

    line: int
    source: str
    reason: str | None = None


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in _CODE.finditer(text):
        kind = "hidden" if match["hidden"] is not None else "shown"
        yield Block(text.count("\n", 0, match.start(kind)) + 1, match[kind], match["reason"])


def run(page: Path, block: Block, namespace: dict[str, Any]) -> None:
    """Run a block; a traceback shows the page's own lines."""
    tree = ast.parse("\n" * (block.line - 1) + block.source, str(page))
    if tree.body and isinstance(last := tree.body[-1], ast.Expr):
        assign = ast.Assign([ast.Name("_", ast.Store())], last.value)
        tree.body[-1] = ast.fix_missing_locations(ast.copy_location(assign, last))
    code = compile(tree, str(page), "exec")
    if block.reason is None:
        exec(code, namespace)


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead, in this tree."""
    text = _FENCED.sub("", page.read_text())
    found = _LINK.findall(text) + _IMAGE.findall(text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs both make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"[\s]+", "-", word) for word in words}
