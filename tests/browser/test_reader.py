"""The reader's choices and scroll position are kept when something else changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_run import FakeRun, fake_run
from reading import cells, expected, place, scroll, settle
from test_live import Kernel, encoded, grown_while_read_at, open_widget

from lens_magic.view import page_html

if TYPE_CHECKING:
    from conftest import Visit
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

LAYERS, POSITIONS = 6, 60


@pytest.fixture(scope="module")
def run() -> FakeRun:
    return fake_run(POSITIONS, LAYERS, seed=3)


@pytest.fixture
def page(visit: Visit, run: FakeRun, tmp_path: Path) -> Page:
    page = visit.open(page_html(run), tmp_path / "run.html")
    settle(page)
    return page


def test_a_token_is_looked_for_in_what_is_on_show_now(page: Page, run: FakeRun) -> None:
    data = run.dataset.token_id
    token = int(data.sel(site="resid_post").values[2, 4, 3])
    page.get_by_role("grid").focus()
    page.keyboard.press("/")
    page.keyboard.type(f"#{token}")
    page.keyboard.press("Enter")
    page.get_by_role("radio", name="mlp_out").check(force=True)
    page.get_by_label("Find a token").press("Enter")
    there = (data.sel(site="mlp_out").values == token).any(-1).any(0)  # [position]
    said = page.locator(".lens-found-status").inner_text()
    assert f"of {int(there.sum())} ·" in said if there.any() else "not in the top" in said
    if there.any():
        layer, position = (int(word) for word in place(page).split() if word.isdigit())
        assert token in data.sel(site="mlp_out").values[layer, position]


def test_a_click_on_the_token_shown_goes_to_no_other(page: Page) -> None:
    page.get_by_role("radio", name="one token").check(force=True)
    for _ in range(4):
        page.get_by_role("button", name="Next token").click()
    before = page.locator(".lens-stepper").inner_text()
    page.locator(".lens-stepper").dblclick()
    page.get_by_text("Token", exact=True).click()
    assert page.locator(".lens-stepper").inner_text() == before


def test_what_is_changed_out_of_sight_is_seen_when_it_is_back(page: Page, run: FakeRun) -> None:
    show = "(how) => { document.getElementById('lens').style.display = how; }"
    page.evaluate(show, "none")
    settle(page)
    page.get_by_role("radio", name="mlp_out", include_hidden=True).evaluate("(input) => input.click()")
    page.evaluate(show, "")
    settle(page)
    settle(page)
    found = cells(page)
    assert len(found) > 20
    for (position, layer), cell in found.items():
        assert cell["text"] == expected(run, "mlp_out", layer, position)


def test_a_selection_outlives_another_shade(page: Page) -> None:
    page.get_by_role("grid").focus()
    for keys in ("Shift+ArrowDown", "Shift+ArrowDown", "Shift+ArrowLeft"):
        page.keyboard.press(keys)
    assert page.locator("[aria-selected=true]").count() == 6
    page.get_by_label("Shade by").select_option("entropy")
    settle(page)
    assert page.locator("[aria-selected=true]").count() == 6
    page.get_by_role("radio", name="mlp_out").check(force=True)
    settle(page)
    assert page.locator("[aria-selected=true]").count() == 1, "another table"


def test_a_plain_click_after_one_with_control_takes_that_site_alone(page: Page) -> None:
    names = page.get_by_role("radio")
    shown = ".lens-colhead"
    one = page.locator(shown).count()
    page.get_by_role("radio", name="mlp_out").click(modifiers=["Control"], force=True)
    settle(page)
    assert page.locator(shown).count() > one
    page.get_by_role("radio", name="resid_post").click(force=True)
    settle(page)
    assert page.locator(shown).count() == one
    assert names.count() > 2


def test_a_pinned_cell_is_gone_to_wherever_one_has_scrolled(page: Page) -> None:
    page.get_by_role("grid").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("p")
    scroll(page, 0, 10_000)
    page.locator(".lens-chip-go").click()
    settle(page)
    assert page.get_by_role("grid").evaluate("(el) => el.scrollTop") == 0


def test_a_reader_of_the_last_layers_of_a_growing_run_stays_there(visit: Visit, tmp_path: Path) -> None:
    page = grown_while_read_at(900, 100_000, 60, visit, tmp_path)  # at the newest row
    assert page.locator("[role=grid]").evaluate("(el) => el.scrollLeft") == 900
    assert max(row for row, _ in cells(page)) == 62, "the newest row is in view"


def test_the_layers_field_says_which_are_on_show(page: Page) -> None:
    field = page.get_by_label("Layers", exact=True)
    field.fill("::2, 5")
    field.press("Enter")
    assert field.input_value() == "::2, 5", "as it was typed"
    page.locator("[role=gridcell]").first.click()
    page.keyboard.press("p")
    for typed in ("3-4", "nonsense"):
        field.fill(typed)
        field.press("Enter")
    assert field.get_attribute("aria-invalid") == "true"
    page.locator(".lens-chip-go").click()  # to layer 0, which was not on show
    settle(page)
    assert (field.input_value(), field.get_attribute("aria-invalid")) == ("", "false")


def test_the_layers_field_of_a_finished_run_says_which_are_on_show(visit: Visit, tmp_path: Path) -> None:
    kernel = Kernel(fake_run(3, LAYERS))
    page = open_widget(visit, tmp_path, kernel.state())
    kernel.grow()
    kernel.tell(page)
    field = page.get_by_label("Layers", exact=True)
    field.fill("::2, -1")
    field.press("Enter")
    kernel.view.finish(kernel.run)
    state = {"header": kernel.view.header, "buffers": encoded(kernel.view.buffers), "live": kernel.view.live}
    page.evaluate("(changes) => become(changes)", state)
    settle(page)
    assert field.input_value() == "0,2,4-5"


def test_a_very_long_token_stays_within_the_legend(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(9, LAYERS)
    run.token_texts.update(dict.fromkeys(run.token_texts, " " * 128))
    page = visit.open(page_html(run), tmp_path / "run.html")
    page.set_viewport_size({"width": 400, "height": 900})
    page.get_by_role("grid").focus()
    page.keyboard.press("/")
    page.keyboard.type(f"#{run.output_ids[0]}")
    page.keyboard.press("Enter")
    settle(page)
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
