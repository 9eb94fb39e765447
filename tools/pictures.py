"""Takes the pictures of the explorer and the figures in docs/images anew (`make pictures`)."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

import lens_magic as lens
from lens_magic.view import page_html

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT / "tests"))

from chromium import launch  # noqa: E402

AMERICA = "Where is the oldest technical university located in America?"
SWEDEN = "Where is the oldest university located in Sweden?"
ROME = "The Eiffel Tower is in the city of Paris, and the Colosseum is in the city of"
PUBLISHED = ROOT / ".published" / "smollm2-135m"
POSITION = 10  # what is before " Troy"


def pinned(page: Page) -> None:
    """Choose the first cell that has " Troy" first, and pin three of its candidates."""
    # It opens at the last layer; where not all eight are in view, those from the cell's on.
    page.get_by_role("grid").first.evaluate("(el) => el.scrollTo((el.scrollWidth - 140) * 5 / 8, el.scrollTop)")
    page.wait_for_timeout(200)
    page.get_by_role("gridcell").filter(has_text="Troy").first.click()
    for token in ("·Troy", "·her", "·Cambridge"):
        page.locator(".lens-candidate", has_text=token).first.click()


def of_one_token(page: Page) -> None:
    """Show the candidates of that cell's position at all sites."""
    pinned(page)
    page.get_by_role("radio", name="one token").check(force=True)


def difference(page: Page) -> None:
    """Show the change from the first run to the second."""
    page.get_by_role("radio", name="difference").check(force=True)


def taken(browser: Browser, page_file: Path, size: tuple[int, int], scheme: Any, act: Callable[[Page], None]) -> bytes:
    """Return a picture of a page after the reader has acted."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.goto(page_file.as_uri())
    page.get_by_role("gridcell").first.wait_for()
    act(page)
    page.mouse.move(1, 1)
    page.wait_for_timeout(400)  # charts move to their places
    picture = page.screenshot()
    page.close()
    return picture


def as_it_opens(page: Page) -> None:
    """Leave the page as it is."""


def main() -> None:
    """Take all of them, that of a published model if it is there (`make published`)."""
    published = None
    if PUBLISHED.is_dir():
        lens.load(str(PUBLISHED))
        published = lens.run(ROME, 12, prompt_tokens=True)
    lens.load("demo")
    run, other = lens.run(AMERICA, 64), lens.run(SWEDEN, 64)
    run.plot("heatmap").savefig(IMAGES / "figure-heatmap.png", dpi=90)
    run.plot("trajectories", position=POSITION).savefig(IMAGES / "figure-trajectories.png", dpi=90)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        one, two = Path(folder, "one.html"), Path(folder, "two.html")
        run.to_html(one)
        two.write_text(page_html(run, compare=other, names=("America", "Sweden")), encoding="utf-8")
        pictures: list[tuple[str, Path, tuple[int, int], str, Callable[[Page], None]]] = [
            ("light", one, (1200, 890), "light", pinned),
            ("dark", one, (1200, 890), "dark", pinned),
            ("narrow", one, (400, 1300), "dark", pinned),
            ("token", one, (1200, 890), "light", of_one_token),
            ("difference", two, (1200, 1170), "dark", difference),
        ]
        if published is not None:
            published.to_html(three := Path(folder, "three.html"))
            pictures.append(("published", three, (1200, 890), "light", as_it_opens))
        browser = launch(playwright)
        for name, page_file, size, scheme, act in pictures:
            (IMAGES / f"explorer-{name}.png").write_bytes(taken(browser, page_file, size, scheme, act))
        browser.close()


if __name__ == "__main__":
    main()
