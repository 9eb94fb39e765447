"""The explorer's costs on the largest run it is made for: bytes, nodes, and how much is redrawn when.

These are counts, which do not depend on the machine's load; `python -m benchmarks.explorer` measures the time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from reading import NODES

if TYPE_CHECKING:
    from conftest import Visit
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

# Scrolls by so much a frame; for each frame, how many cells were touched and how many nodes made in the table.
SCROLL = """async ([dx, dy, frames]) => {
  const grid = document.querySelector("[role=grid]");
  const canvas = grid.querySelector(".lens-canvas");
  const drawn = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  await drawn();
  let records = [];
  const seen = new MutationObserver((more) => records.push(...more));
  seen.observe(canvas, { subtree: true, childList: true, characterData: true, attributes: true });
  const found = [];
  for (let i = 0; i < frames; i++) {
    records = [];
    grid.scrollBy(dx, dy);
    await drawn();
    const elements = records.map(({ target }) => (target instanceof Element ? target : target.parentElement));
    const cells = new Set(elements.map((element) => element?.closest("[role=gridcell]")).filter(Boolean));
    const made = records.filter(({ addedNodes, target }) => addedNodes.length && target.closest?.("[role=gridcell]"));
    found.push([cells.size, made.length]);
  }
  seen.disconnect();
  return found;
}"""

# How many rows and columns are drawn, and how large a cell is.
DRAWN = """() => {
  const grid = document.querySelector("[role=grid]");
  const style = getComputedStyle(grid);
  return {
    rows: grid.querySelectorAll(".lens-row").length,
    cols: grid.querySelectorAll(".lens-colhead").length,
    height: parseFloat(style.getPropertyValue("--lens-row-h")),
    width: parseFloat(style.getPropertyValue("--lens-col-w")),
  };
}"""


@pytest.fixture
def largest(visit: Visit, big_html: str, tmp_path: Path) -> Page:
    page = visit.open(big_html, tmp_path / "large.html")
    page.wait_for_function("() => performance.getEntriesByName('lens-first-paint').length")
    return page


@pytest.mark.parametrize(("dx", "dy"), [(0, 60), (0, -60), (40, 0), (-40, 0), (0, 400), (30, 45)])
def test_scrolling_draws_what_comes_into_view(largest: Page, dx: int, dy: int) -> None:
    """Elements are recycled, none made; a cell that stays in view is not touched."""
    largest.evaluate("() => document.querySelector('[role=grid]').scrollTo(1000, 10000)")
    drawn = largest.evaluate(DRAWN)
    rows, cols = drawn["rows"], drawn["cols"]
    down, across = math.ceil(abs(dy) / drawn["height"]), math.ceil(abs(dx) / drawn["width"])
    most = min(rows, down) * cols + min(cols, across) * rows
    found = largest.evaluate(SCROLL, [dx, dy, 20])
    assert all(made == 0 for _, made in found)
    assert 0 < max(touched for touched, _ in found) <= most, (found, drawn)


def test_nodes_stay_few(largest: Page) -> None:
    """However large the cells and whatever is scrolled, zoomed or opened."""
    counts = [largest.evaluate(NODES)]
    for button in ("Larger cells", "Larger cells", "Smaller cells", "Smaller cells", "Smaller cells"):
        largest.get_by_role("button", name=button).click()
        counts.append(largest.evaluate(NODES))
    largest.evaluate(SCROLL, [300, 4000, 5])
    largest.get_by_role("gridcell").first.dblclick()
    counts.append(largest.evaluate(NODES))
    assert max(counts) < 1500, counts
