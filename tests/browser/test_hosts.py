"""A run in progress, in JupyterLab and in Notebook 7: rows appear while the kernel is busy, and Stop works."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import opening
import pytest
from server import Server, server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.kernel, pytest.mark.timeout(300)]

TESTS = Path(__file__).parents[1]
# The kernel's main thread does not come back to its queue until the run is stopped or at its end.
CELL = f"""
import sys, threading, time
sys.path.insert(0, {str(TESTS)!r})
from fake_run import fake_run
from lens_magic.view import LiveView
from lens_magic.view.data import path

run = fake_run(300, 8)
data, stop = run.dataset, threading.Event()
view = LiveView("growing", data.site.values.tolist(), data.layer.values.tolist(), 5, on_stop=stop.set)
display(view)
made = 0
while made < 300 and not stop.is_set():
    inputs, targets = path(run.prompt_ids, run.output_ids, [made])
    view.say(run.token_texts[int(targets[0])])
    part = {{str(name): data[name].values[:, :, made : made + 1] for name in data.data_vars}}
    view.append([made], part, inputs.tolist(), targets.tolist(), run.token_texts)
    made += 1
    time.sleep(0.1)
run.dataset, run.output_ids, run.interrupted = data.isel(position=slice(0, made)), run.output_ids[:made], stop.is_set()
view.finish(run)
print("made", made, "stopped", stop.is_set())
"""


@pytest.fixture(params=["lab", "notebook"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Server]]:
    """A server, and where in it the notebook is."""
    if request.param == "lab":
        yield "lab/workspaces/live/tree/live.ipynb", request.getfixturevalue("lab")
        return
    if find_spec("notebook") is None:
        pytest.skip("notebook is not installed")
    # The cell makes its run itself: no ranks are needed.
    with server(tmp_path, "notebook", "--JupyterNotebookApp.expose_app_in_browser=True", LENS_RANKS="1") as running:
        yield "notebooks/live.ipynb", running


def test_a_growing_run(browser: Browser, host: tuple[str, Server]) -> None:
    place, running = host
    opening.write(running.folder / "live.ipynb", [CELL])
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(60_000)
    opening.open_and_run(page, running, place)
    stop = page.get_by_role("button", name="Stop generating")
    stop.wait_for()
    grid = page.get_by_role("grid").first
    grid.wait_for()
    early = int(grid.get_attribute("aria-rowcount") or 0)
    page.wait_for_function("(n) => +document.querySelector('.lens-root [role=grid]').ariaRowCount > n + 3", arg=early)
    stop.click()
    page.get_by_text("stopped True").wait_for()
    said = page.locator(".jp-OutputArea-output", has_text="stopped True").inner_text()
    made = int(said.split()[1])
    assert early <= made < 300
    page.locator(".lens-live").wait_for(state="detached")
    assert page.get_by_role("grid").first.get_attribute("aria-rowcount") == str(made + 1)
    assert "interrupted" in page.locator(".lens-title").inner_text()
    assert not page.locator("[data-lens-for]").is_visible()
    opening.close(page, running)
