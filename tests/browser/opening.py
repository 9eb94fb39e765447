"""Notebooks that the tests in this folder open in a Jupyter server and run, each on a kernel of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from server import Server

SCREENSHOTS = Path(__file__).parents[2] / "out" / "screenshots"
START_MS = 120_000  # for what waits for a server, a kernel or a model

# Before the page knows its kernel, a run that is asked for is forgotten, or asks which kernel to run on.
READY = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"


def write(path: Path, codes: Sequence[str]) -> None:
    """A notebook of these cells for the Lens kernel."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])
    notebook.metadata["kernelspec"] = {"name": "lens", "display_name": "Lens", "language": "python"}
    nbformat.write(notebook, path)


def open_and_run(page: Page, running: Server, place: str) -> None:
    """Open the notebook at an address of the server, and run its cells."""
    page.goto(f"{running.url}/{place}?token={running.token}", timeout=START_MS)
    page.locator(".jp-Notebook").first.wait_for(timeout=START_MS)
    page.wait_for_function(READY, timeout=START_MS)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def close(page: Page, running: Server) -> None:
    """Close the page, and end the server's kernels."""
    page.close()
    for kernel in running.ask("kernels"):
        running.ask(f"kernels/{kernel['id']}", method="DELETE")


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
