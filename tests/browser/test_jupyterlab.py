"""The first tutorial in JupyterLab, in Chromium, on a real Lens kernel, used as a reader would."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import opening
import pytest
from opening import START_MS, shoot

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page
    from server import Server

pytestmark = [pytest.mark.browser, pytest.mark.kernel, pytest.mark.ranks("own"), pytest.mark.timeout(600)]

TUTORIAL = Path(__file__).parents[2] / "notebooks" / "01-logit-lens.ipynb"
STEP_MS = 30_000

# Everything the notebook's code cells have come to: how many have run, and which of their outputs are errors.
PROGRESS = """() => {
  const panel = window.jupyterapp.shell.currentWidget;
  const cells = [...panel.content.model.cells].filter((cell) => cell.type === "code");
  const outputs = cells.flatMap((cell) => [...Array(cell.outputs.length).keys()].map((i) => cell.outputs.get(i).toJSON()));
  return {
    cells: cells.length,
    done: cells.filter((cell) => cell.executionCount !== null && cell.executionState !== "running").length,
    errors: outputs.filter((output) => output.output_type === "error").map((output) => output.ename + ": " + output.evalue),
  };
}"""


@pytest.fixture(scope="module")
def noise() -> list[str]:
    return []


@pytest.fixture(scope="module")
def page(browser: Browser, lab: Server, noise: list[str]) -> Iterator[Page]:
    """The tutorial, opened, on its kernel, with every cell run."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(STEP_MS)

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            noise.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    page.on("console", heard)
    page.on("pageerror", lambda error: noise.append(f"uncaught: {error}"))
    shutil.copy(TUTORIAL, lab.folder / TUTORIAL.name)
    opening.open_and_run(page, lab, f"lab/workspaces/tutorial/tree/{TUTORIAL.name}")
    page.wait_for_function(
        f"() => {{ const p = ({PROGRESS})(); return p.done === p.cells || p.errors.length; }}", timeout=START_MS
    )
    yield page
    theme(page, "JupyterLab Light")  # it is the server's
    opening.close(page, lab)


def explorer(page: Page) -> Any:
    """The first interactive table, scrolled into view."""
    root = page.locator(".lens-root").first
    root.scroll_into_view_if_needed()
    root.wait_for()
    return root


def theme(page: Page, name: str) -> None:
    page.evaluate("(name) => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })", name)
    light = str(name == "JupyterLab Light").lower()
    page.wait_for_function(f"() => document.body.dataset.jpThemeLight === '{light}'")
    page.wait_for_timeout(500)  # stylesheets load, colours fade


def test_every_cell_runs(page: Page) -> None:
    progress = page.evaluate(PROGRESS)
    assert progress["errors"] == []
    assert progress["done"] == progress["cells"] >= 8


def test_the_table_is_there_and_answers(page: Page) -> None:
    root = explorer(page)
    grid = root.get_by_role("grid")
    assert grid.get_by_role("gridcell").count() > 20
    # One table for a reader: the static one, for readers without widgets, is hidden.
    assert page.locator("[data-lens-for]").count() >= 1
    assert not page.locator("[data-lens-for]").first.is_visible()

    before = root.inner_text()
    root.get_by_role("radio", name="attn_out").click()
    assert root.get_by_role("radio", name="attn_out").is_checked()
    page.wait_for_function("(old) => document.querySelector('.lens-root').innerText !== old", arg=before)
    root.get_by_role("radio", name="resid_post").click()

    cell = grid.get_by_role("gridcell").nth(3)
    cell.hover()
    place = root.locator(".lens-place").inner_text()
    grid.get_by_role("gridcell").nth(12).hover()
    page.wait_for_function("(old) => document.querySelector('.lens-place').innerText !== old", arg=place)


def test_tables_do_not_disturb_each_other(page: Page) -> None:
    """Each says which site it shows, and no two elements of the document have one name."""
    page.wait_for_function("() => document.querySelectorAll('.lens-root').length >= 2")
    chosen = "(roots) => roots.map((root) => root.querySelectorAll('[aria-label=Site] input:checked').length)"
    assert set(page.locator(".lens-root").evaluate_all(chosen)) == {1}
    ids = page.locator(".lens-root [id]").evaluate_all("(elements) => elements.map((element) => element.id)")
    assert len(ids) == len(set(ids))


def test_it_scrolls_on_its_own(page: Page) -> None:
    root = explorer(page)
    grid = root.get_by_role("grid")
    for _ in range(2):  # with the largest cells no answer fits
        root.get_by_role("button", name="Larger cells").click()
    reach = grid.evaluate("(el) => [el.scrollWidth - el.clientWidth, el.scrollHeight - el.clientHeight]")
    assert max(reach) > 50
    around = "() => document.querySelector('.jp-WindowedPanel-outer').scrollTop"
    grid.get_by_role("gridcell").nth(3).hover()
    before = page.evaluate(around)
    page.mouse.wheel(reach[0], 0 if reach[0] else reach[1])
    page.wait_for_function("() => { const g = document.querySelector('[role=grid]'); return g.scrollTop + g.scrollLeft > 50; }")
    assert page.evaluate(around) == before, "the notebook scrolled too"
    grid.evaluate("(el) => el.scrollTo(0, 0)")
    for _ in range(2):
        root.get_by_role("button", name="Smaller cells").click()


def test_arrow_keys_move_in_the_table_not_in_the_notebook(page: Page) -> None:
    root = explorer(page)
    active = "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"
    root.get_by_role("grid").get_by_role("gridcell").nth(2).click()
    cell, place = page.evaluate(active), root.locator(".lens-place").inner_text()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("(old) => document.querySelector('.lens-place').innerText !== old", arg=place)
    assert page.evaluate(active) == cell


@pytest.mark.parametrize("name", ["JupyterLab Light", "JupyterLab Dark"])
def test_themes(page: Page, name: str) -> None:
    theme(page, name)
    root = explorer(page)
    root.get_by_role("grid").get_by_role("gridcell").nth(9).hover()
    shoot(page, name.lower().replace(" ", "-"))
    back, front = page.evaluate(
        """() => {
          const root = document.querySelector(".lens-root");
          const lightness = (colour) => { const [r, g, b] = colour.match(/[0-9.]+/g).map(Number); return (r + g + b) / 3; };
          let el = root;
          while (getComputedStyle(el).backgroundColor === "rgba(0, 0, 0, 0)") el = el.parentElement;
          return [lightness(getComputedStyle(el).backgroundColor), lightness(getComputedStyle(root).color)];
        }"""
    )
    assert (back > front) == (name == "JupyterLab Light")
    assert abs(back - front) > 100


def test_the_stop_button(page: Page) -> None:
    page.evaluate(
        """async () => {
          const { commands, shell } = window.jupyterapp;
          const { content } = shell.currentWidget;
          content.activeCellIndex = content.widgets.length - 1;
          await commands.execute("notebook:insert-cell-below");
          content.activeCell.model.sharedModel.setSource("%%lens -n 1900 --ignore-eos -o long\\nQuestion:");
          content.activeCell.node.id = "long";
          commands.execute("notebook:run-cell");
        }"""
    )
    page.locator("#long .jp-OutputArea-output pre").first.wait_for(timeout=START_MS)  # it has begun to speak
    page.locator(".jp-Toolbar").get_by_title("Interrupt the kernel").first.click()
    stopped = page.locator("#long .jp-OutputArea").get_by_text("KeyboardInterrupt: stopped after")
    stopped.wait_for()
    assert "the result so far is in `long`" in stopped.inner_text()
    partial = page.locator("#long .lens-root")
    partial.scroll_into_view_if_needed()
    assert "interrupted" in partial.inner_text()
    shoot(page, "jupyterlab-stopped")


def test_opened_again(page: Page) -> None:
    """A saved notebook shows each table once: the live one, or where there is none, the one without scripts."""
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(500)
    page.reload(timeout=START_MS)
    page.locator(".jp-Notebook").wait_for(timeout=START_MS)
    page.locator(".lens-root, [data-lens-for]").first.wait_for(state="attached", timeout=START_MS)
    page.wait_for_timeout(2000)  # widgets are brought back after their outputs
    first = page.locator(".jp-Cell", has=page.locator("[data-lens-for]")).first
    first.scroll_into_view_if_needed()
    shoot(page, "jupyterlab-again")
    shown = [element.is_visible() for element in first.locator(".lens-root, [data-lens-for]").all()]
    assert shown.count(True) == 1


def test_nothing_is_wrong_in_the_console(page: Page, noise: list[str]) -> None:
    ours = [line for line in noise if any(word in line.lower() for word in ("lens", "anywidget", "widget"))]
    uncaught = [line for line in noise if line.startswith("uncaught")]
    assert ours + uncaught == [], noise
