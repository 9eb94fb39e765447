"""Chromium and JupyterLab for the tests in this folder, or the reason why one is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
sys.path.append(str(TESTS / "kernel"))

from chromium import launch  # noqa: E402
from fake_run import FakeRun, fake_run  # noqa: E402
from server import Server, server  # noqa: E402

from lens_magic.view import page_html  # noqa: E402


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        try:
            chromium = launch(playwright)
        except sync_api.Error as error:
            pytest.skip(f"Chromium does not start: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def big() -> FakeRun:
    """As large as the explorer is made for: 1,500 tokens × 80 layers × 3 sites × 5 candidates."""
    return fake_run(1500, 80, vocabulary=20_000)


@pytest.fixture(scope="session")
def big_html(big: FakeRun) -> str:
    return page_html(big)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A JupyterLab that asks a reader nothing; notebooks are put into its folder, and open in a workspace of their own.

    Its kernels load on two ranks: on four the tutorial runs in `make demo`.
    """
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    folder = tmp_path_factory.mktemp("lab")
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    options = ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=", "--LabApp.extension_manager=readonly"]
    more = {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    with server(folder, "lab", *options, LENS_RANKS="2", **more) as running:
        yield running


@dataclass
class Visit:
    """A page and all it did that a quiet page does not do."""

    page: Page
    noise: list[str] = field(default_factory=list)

    def open(self, html: str, path: Path) -> Page:
        path.write_text(html, encoding="utf-8")
        self.page.goto(path.as_uri())
        return self.page


@pytest.fixture
def visit(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A fresh page; at the end, anything in its console, any dialog and any request but the first is a failure."""
    options: dict[str, Any] = {"viewport": {"width": 1200, "height": 800}, **getattr(request, "param", {})}
    page = browser.new_page(**options)
    visit = Visit(page)

    def dismiss(dialog: Any) -> None:
        visit.noise.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def requested(message: Any) -> None:
        if not message.url.startswith(("file:", "data:,")):
            visit.noise.append(f"request: {message.url}")

    page.on("console", lambda message: visit.noise.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: visit.noise.append(f"error: {error}"))
    page.on("dialog", dismiss)
    page.on("request", requested)
    yield visit
    page.close()
    assert visit.noise == []
