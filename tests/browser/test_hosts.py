"""A run in progress, in JupyterLab and in Notebook 7: rows appear while the kernel is busy, and Stop works."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

import nbformat
import pytest

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "kernel"))

from server import Server, server  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.kernel, pytest.mark.timeout(300)]

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


@pytest.fixture(scope="module", params=["lab", "notebook"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    name = {"lab": "jupyterlab", "notebook": "notebook"}[request.param]
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata["kernelspec"] = {"name": "lens", "display_name": "Lens", "language": "python"}
    nbformat.write(notebook, folder / "live.ipynb")
    options = ["--LabApp.news_url=", "--LabApp.extension_manager=readonly"]
    # The cell makes its run itself: no ranks are needed.
    with server(folder, request.param, *(options if request.param == "lab" else ()), LENS_RANKS="1") as running:
        yield request.param, running


def kernels(running: Server) -> list[dict[str, Any]]:
    """The server's kernels; none while it cannot say, as in the moment in which one is being added."""
    with suppress(HTTPError):
        return list(running.ask("kernels"))
    return []


def test_a_growing_run(browser: Browser, host: tuple[str, Server]) -> None:
    name, running = host
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(60_000)
    where = "lab/tree" if name == "lab" else "notebooks"
    page.goto(f"{running.url}/{where}/live.ipynb?token={running.token}")
    page.locator(".jp-Notebook .cm-content").first.wait_for()
    deadline = time.monotonic() + 60  # "run" before the kernel is connected asks which kernel to run on
    while not any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels(running)):
        assert time.monotonic() < deadline, "no kernel"
        page.wait_for_timeout(200)
    page.wait_for_timeout(1500)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
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
    page.close()
