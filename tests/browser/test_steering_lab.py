"""The steering panel and both texts of ``%%steer`` in JupyterLab, in Chromium, on a real Lens kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import opening
import pytest
from opening import START_MS, shoot

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from server import Server

pytestmark = [pytest.mark.browser, pytest.mark.kernel, pytest.mark.ranks("own"), pytest.mark.timeout(300)]

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
def page(browser: Browser, lab: Server) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1300, "height": 1200})
    page.set_default_timeout(60_000)
    opening.write(lab.folder / "steering.ipynb", CELLS)
    opening.open_and_run(page, lab, "lab/workspaces/steering/tree/steering.ipynb")
    page.locator(".widget-button, .jupyter-button").first.wait_for(timeout=START_MS)
    yield page
    opening.close(page, lab)


def test_both_texts_are_shown(page: Page) -> None:
    shown = page.locator(".lens-steered").first
    shown.scroll_into_view_if_needed()
    assert shown.locator(".lens-column").count() == 2
    assert shown.locator(".lens-text .lens-first").count() == 2
    shoot(page, "steer-cell")


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
    shoot(page, "steer-panel-running")
    panel.locator(".lens-first").first.wait_for()  # only the finished texts are marked
    shoot(page, "steer-panel")
    left = panel.locator(".lens-fallback .lens-steered")  # what the saved notebook will show
    left.wait_for(state="attached")
    assert not left.is_visible()
