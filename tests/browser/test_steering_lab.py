"""The steering panel and both texts of ``%%steer`` in JupyterLab, in Chromium, on a real Lens kernel."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "kernel"))

from server import Server, server  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.kernel, pytest.mark.ranks("own"), pytest.mark.timeout(300)]

SCREENSHOTS = ROOT / "out" / "screenshots"
START_MS = 60_000
CELLS = (
    "%lens load demo",
    """from importlib.resources import files
pairs = str(files("lens_magic") / "demo" / "data" / "mood-pairs.jsonl")
%steer train mood --pairs $pairs --layers 4 --site resid_post --position mean""",
    "%%steer mood:-1.5 -n 40\nOne day, Ida found a box near the hill.",
    """import lens_magic as lens, time
panel = lens.panel()
panel.prompt.value, panel.tokens.value = "One day, Ida found a box near the hill.", 60
panel.heard = lambda event: time.sleep(0.03)
panel""",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    import nbformat

    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "lens", "display_name": "Lens", "language": "python"}})
    notebook.cells = [nbformat.v4.new_code_cell(code) for code in CELLS]
    nbformat.write(notebook, folder / "steering.ipynb")
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    options = ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=", "--LabApp.extension_manager=readonly"]
    more = {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    with server(folder, "lab", *options, LENS_RANKS="2", **more) as running:
        yield running


@pytest.fixture(scope="module")
def page(browser: Browser, lab: Server) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1300, "height": 1200})
    page.set_default_timeout(60_000)
    page.goto(f"{lab.url}/lab/tree/steering.ipynb?token={lab.token}", timeout=START_MS)
    page.locator(".jp-Notebook").wait_for(timeout=START_MS)
    page.get_by_text("Lens | Idle").wait_for()  # a run that is asked for before is forgotten
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.locator(".widget-button, .jupyter-button").first.wait_for(timeout=START_MS)
    yield page
    page.close()


def test_both_texts_are_shown(page: Page) -> None:
    shown = page.locator(".lens-steered").first
    shown.scroll_into_view_if_needed()
    assert shown.locator(".lens-column").count() == 2
    assert shown.locator(".lens-text .lens-first").count() == 2
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "steer-cell.png")


def test_the_panel_generates_and_hears_alpha_meanwhile(page: Page) -> None:
    run = page.locator(".jupyter-button", has_text="Run").last
    run.scroll_into_view_if_needed()
    panel = page.locator(".jp-OutputArea").last
    run.click()
    panel.locator(".lens-steered").wait_for()
    page.wait_for_timeout(500)
    slider = panel.locator(".noUi-handle").first
    slider.focus()
    for _ in range(5):
        slider.press("PageDown")
    page.screenshot(path=SCREENSHOTS / "steer-panel-running.png")
    panel.locator(".lens-first").first.wait_for()  # only the finished texts are marked
    page.screenshot(path=SCREENSHOTS / "steer-panel.png")
