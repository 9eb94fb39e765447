"""What a reader sees in the explorer, for the tests in this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fake_run import FakeRun

from lens_magic.view.text import visible

if TYPE_CHECKING:
    from playwright.sync_api import Page

# How many elements and texts the page has.
NODES = """() => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
  let n = 0;
  while (walk.nextNode()) n += 1;
  return n;
}"""

# What is drawn inside the grid's frame, by the labels that a reader would use to find it.
DRAWN = """() => {
  const grid = document.querySelector("[role=grid]");
  const box = grid.getBoundingClientRect();
  const inner = (el) => {
    const b = el.getBoundingClientRect();
    const [x, y] = [b.left + b.width / 2, b.top + b.height / 2];
    return grid.contains(document.elementFromPoint(x, y)) && el.contains(document.elementFromPoint(x, y));
  };
  const cells = [];
  for (const row of grid.querySelectorAll("[role=row]")) {
    for (const cell of row.querySelectorAll("[role=gridcell]")) {
      if (!inner(cell)) continue;
      cells.push({
        row: row.ariaRowIndex - 2, col: cell.ariaColIndex - 2, text: cell.textContent,
        hit: cell.classList.contains("lens-hit"),
      });
    }
  }
  return cells;
}"""


def expected(run: FakeRun, site: str, layer: int, index: int) -> str:
    return visible(run.token_texts[int(run.dataset.token_id.sel(site=site, layer=layer)[index, 0])])


def check(page: Page, run: FakeRun, site: str, transposed: bool = False) -> list[dict[str, Any]]:
    """Every cell that can be seen says what the run says, and enough of them can be seen."""
    cells = page.evaluate(DRAWN)
    assert len(cells) > 20
    path = run.prompt_ids + run.output_ids
    for cell in cells:
        index, layer = (cell["col"], cell["row"]) if transposed else (cell["row"], cell["col"])
        assert cell["text"] == expected(run, site, layer, index), cell
        top = int(run.dataset.token_id.sel(site=site, layer=layer)[index, 0])
        assert cell["hit"] == (top == path[index + 1])
    return cells


def scroll(page: Page, left: int, top: int) -> None:
    page.evaluate("([x, y]) => document.querySelector('[role=grid]').scrollTo(x, y)", [left, top])
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def place(page: Page) -> str:
    return page.locator(".lens-place").inner_text()


def settle(page: Page) -> None:
    """Two frames: what was asked for is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def cells(page: Page, grid: int = 0) -> dict[tuple[int, int], dict[str, Any]]:
    """Every cell that exists, by row and column: its text, its number, its classes."""
    found = page.evaluate(
        """(index) => [...document.querySelectorAll("[role=grid]")[index].querySelectorAll(".lens-cell")].map((el) => ({
          row: el.parentElement.ariaRowIndex - 2, col: el.ariaColIndex - 2, text: el.textContent,
          number: el.dataset.n ?? "", classes: [...el.classList], shade: getComputedStyle(el).backgroundColor,
        }))""",
        grid,
    )
    return {(cell["row"], cell["col"]): cell for cell in found}


def number(text: str) -> float:
    """A number as cells write it."""
    return (
        {"≈0": 0.0, "–": float("nan"), ".99+": 0.9975}[text] if text in ("≈0", "–", ".99+") else float(text.replace("−", "-"))
    )
