"""Code in the documentation runs, and its links lead somewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .pages import PAGES, ROOT, anchors, blocks, links, name, run

WITH_CODE = [page for page in PAGES if any(blocks(page))]


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        run(page, block, namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_a_page_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `Two`, three\n\n[a](#one-two-three) [b](http://x.y) ![c](c.png)\n\n"
        "<!-- run\nx = 20\n-->\n```python\ny = x + 1\n2 * y\n```\n<!-- run\nassert _ == 43\n-->\n"
        "<!-- not run: it takes minutes -->\n```python\n1 / 0\n```\n```text\n[d](d.md)\n```\n"
    )
    assert links(page) == ["#one-two-three", "c.png"]
    assert anchors(page) == {"one-two-three"}
    hidden, shown, check, long = blocks(page)
    assert (hidden.line, shown.line, check.line, long.line) == (6, 9, 13, 17)
    assert long.reason == "it takes minutes"
    namespace: dict[str, Any] = {}
    for block in (hidden, shown, long):
        run(page, block, namespace)
    assert namespace["_"] == 42
    with pytest.raises(AssertionError) as failure:
        run(page, check, namespace)
    assert failure.traceback[-1].lineno == 13 - 1  # counted from 0
