"""The pages a reader sees on the repository's site: links lead somewhere, code fits, and what it names is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lens_magic

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "lens_magic/demo/CARD.md", *ROOT.glob("notebooks/*.ipynb")]
WIDEST = 96  # characters of code that are read without scrolling

_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
_FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return text


def anchors(page: Path) -> set[str]:
    """The anchors GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_of(text: str) -> Iterator[str]:
    """The lines of fenced and of indented code."""
    for block in _FENCED.findall(text):
        yield from block.splitlines()
    yield from re.findall(r"^ {4}(.*)$", _FENCED.sub("", text), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page(page: Path) -> None:
    text = text_of(page)
    for target in (first or second for first, second in _LINK.findall(text)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target
    assert not [line for line in code_of(text) if len(line) > WIDEST]
    assert {*re.findall(r"(?<![\w-])lens\.([A-Za-z]\w+)", text)} <= {*lens_magic.__all__}
