"""JupyterLab typesets formulas in HTML outputs, and takes two dollars for the ends of one: ours are text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import nbformat
import pytest
from fake_run import fake_run
from opening import START_MS, close

from lens_magic.steer.compare import Side, SteeredText
from lens_magic.view import Explorer, table_html
from lens_magic.view.static_table import fallback_html
from lens_magic.view.steered import Growing, as_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from server import Server

pytestmark = [pytest.mark.browser, pytest.mark.kernel, pytest.mark.timeout(300)]

MATH = "$x^2$"


def outputs() -> dict[str, str]:
    """Each kind of output with tokens and texts that look like formulas."""
    run = fake_run(6, 3)
    run.token_texts = dict.fromkeys(run.token_texts, MATH)
    run.options = {"steering": [f"{MATH} add α=1"]}
    side = Side(f"a {MATH}", [0, 1])
    growing = Growing(SimpleNamespace(tokenizer=None, stop_ids=()))
    growing.texts = [f"costs {MATH} or so", "$5 and $6"]
    return {
        "table": table_html(run),
        "fallback": fallback_html(Explorer(run)._shown, "none"),
        "steered": as_html(SteeredText("", side, side, {0: MATH, 1: "$"}, steering=(MATH,))),
        "growing": growing.html(),
    }


def test_dollars_are_text(browser: Browser, lab: Server) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(name, outputs=[nbformat.v4.new_output("display_data", {"text/html": html})])
            for name, html in {**outputs(), "theirs": f"<div>{MATH}</div>"}.items()
        ]
    )
    notebook.metadata["kernelspec"] = {"name": "lens", "display_name": "Lens", "language": "python"}
    nbformat.write(notebook, lab.folder / "dollars.ipynb")
    page = browser.new_page(viewport={"width": 1400, "height": 1600})
    page.goto(f"{lab.url}/lab/workspaces/dollars/tree/dollars.ipynb?token={lab.token}", timeout=START_MS)
    page.locator("mjx-container").last.wait_for(timeout=START_MS)  # in the output that is not ours, the last
    assert page.locator(".lens-static, .lens-steered").count() == 4
    assert page.locator(":is(.lens-static, .lens-steered) mjx-container").count() == 0
    assert page.locator("mjx-container").count() == 1
    close(page, lab)
