"""The explorer without a mouse: a pressed control keeps the focus or passes it on, and everything can be reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_run import fake_run
from reading import place, settle

from lens_magic.view import page_html

if TYPE_CHECKING:
    from conftest import Visit
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.fixture
def page(visit: Visit, tmp_path: Path) -> Page:
    return visit.open(page_html(fake_run(9, 6, seed=3)), tmp_path / "run.html")


def focused(page: Page) -> str:
    """The name of what has the focus."""
    name = "(el) => el.getAttribute('aria-label') ?? (el === document.body ? el.tagName : el.textContent)"
    return str(page.evaluate(f"() => ({name})(document.activeElement)"))


def test_going_to_a_layer_keeps_the_focus(page: Page) -> None:
    link = page.locator(".lens-link").first
    name = link.get_attribute("aria-label")
    link.focus()
    page.keyboard.press("Enter")
    assert place(page).split(" · ")[1] in str(name)
    assert focused(page) == name


def test_a_table_reached_by_key_shows_where_one_is(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(page_html(fake_run(60, 40)), tmp_path / "wide.html")
    grid = page.get_by_role("grid")
    grid.evaluate("(el) => el.scrollTo(0, 0)")
    settle(page)
    assert grid.get_attribute("aria-activedescendant") is None, "the last layer is out of view"

    def seen() -> bool:
        return bool(
            grid.evaluate(
                """(el) => {
                  const active = document.getElementById(el.getAttribute("aria-activedescendant"))?.getBoundingClientRect();
                  const box = el.getBoundingClientRect();
                  return active && active.left >= box.left && active.right <= box.right && active.bottom <= box.bottom;
                }"""
            )
        )

    grid.evaluate("(el) => el.addEventListener('focus', () => (window.there = true))")
    while not page.evaluate("() => window.there"):
        page.keyboard.press("Tab")
    assert seen()
    page.keyboard.press("Shift+ArrowDown")
    grid.evaluate("(el) => { el.blur(); el.scrollTo(0, 1000); }")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert seen()
    assert page.locator("[aria-selected=true]").count() == 2
    page.locator("[role=gridcell]").first.click()
    grid.evaluate("(el) => { el.blur(); el.scrollTo(500, 0); }")
    page.locator(".lens-corner").click()
    assert grid.evaluate("(el) => [document.activeElement === el, el.scrollLeft]") == [True, 500], "a click scrolls nothing"


def test_pins_keep_the_focus_and_hand_it_on(page: Page) -> None:
    names = []
    for at in (1, 2):
        page.locator(".lens-candidate").nth(at).focus()
        names.append(page.locator(".lens-candidate").nth(at).inner_text())
        page.keyboard.press("Enter")
    page.locator(".lens-chip-go").first.focus()
    there = focused(page)
    page.keyboard.press("Enter")
    page.locator("[role=gridcell]").nth(20).hover()
    assert focused(page) == there
    page.keyboard.press("Tab")
    for expected in (f"Unpin {names[0]}", f"Unpin {names[1]}"):
        assert focused(page) == expected
        page.keyboard.press("Enter")
    assert focused(page) == page.get_by_role("grid").get_attribute("aria-label")


def test_at_the_last_size_the_focus_goes_to_the_other_button(page: Page) -> None:
    page.get_by_label("Smaller cells").focus()
    page.keyboard.press("Enter")
    assert focused(page) == "Larger cells"
    for _ in range(3):
        page.keyboard.press("Enter")
    assert focused(page) == "Smaller cells"


def test_a_page_is_searched_at_once(page: Page) -> None:
    assert focused(page) == "BODY"
    page.keyboard.press("/")
    assert focused(page) == "Find a token"
    page.keyboard.type("/")
    assert page.get_by_label("Find a token").input_value() == "/"


def test_a_choice_of_sites_leads_to_finding_too(page: Page) -> None:
    page.get_by_role("radio", name="mlp_out").focus()
    page.keyboard.press("/")
    assert focused(page) == "Find a token"
    page.get_by_label("Layers", exact=True).focus()
    page.keyboard.press("/")
    assert page.get_by_label("Layers", exact=True).input_value() == "/"


def test_a_site_is_added_by_key(page: Page) -> None:
    one = page.locator(".lens-colhead").count()
    page.get_by_role("radio", name="resid_post").focus()
    page.keyboard.press("Shift+ArrowLeft")
    assert page.evaluate("() => document.activeElement.value") == "mlp_out"
    assert page.locator(".lens-colhead").count() == one
    page.keyboard.press("Shift+Space")
    settle(page)
    assert page.locator(".lens-segments .lens-on").all_inner_texts()[:2] == ["mlp_out", "resid_post"]
    assert page.locator(".lens-colhead").count() > one


def test_each_cell_is_told_by_another_id(page: Page) -> None:
    """Some screen readers are silent where the id stays and another element has it."""
    grid = page.get_by_role("grid")
    grid.focus()
    told = []
    for key in ("ArrowDown", "ArrowLeft", "Control+End", "Home"):
        page.keyboard.press(key)
        active = page.locator(f"[id='{grid.get_attribute('aria-activedescendant')}']")
        assert active.get_attribute("aria-selected") == "true"
        assert page.locator("[id$=-active]").count() == 1
        told.append((active.get_attribute("id"), active.get_attribute("aria-label")))
    assert len({name for name, _ in told}) == len({label for _, label in told}) == len(told)


def test_a_closed_list_of_tokens_is_not_told_of(page: Page) -> None:
    find = page.get_by_label("Find a token")
    find.fill("the")
    assert find.get_attribute("aria-activedescendant")
    page.keyboard.press("Enter")
    assert find.get_attribute("aria-activedescendant") is None
    assert find.get_attribute("aria-expanded") == "false"


def test_the_focus_is_in_sight_on_its_way_back(visit: Visit, tmp_path: Path) -> None:
    """The head of a long list of candidates stays at its top, over them."""
    page = visit.open(page_html(fake_run(9, 6, k=30, vocabulary=90)), tmp_path / "many.html")
    buttons = page.locator(".lens-candidate")
    buttons.last.focus()
    for at in range(28, -1, -1):
        page.keyboard.press("Shift+Tab")
        assert buttons.nth(at).evaluate(
            """(el) => {
              const box = el.getBoundingClientRect();
              return document.activeElement === el && el === document.elementFromPoint(box.left + 9, box.top + 4);
            }"""
        )


def test_what_buttons_say_is_in_their_names(page: Page) -> None:
    """Whoever speaks to the computer says what is written there."""
    for at in (1, 2):
        page.locator(".lens-candidate").nth(at).click()
    said = page.locator("button:visible").evaluate_all(
        "(all) => all.map((el) => [el.textContent, el.ariaLabel ?? el.textContent])"
    )
    written = [(text, name) for text, name in said if any(letter.isalpha() for letter in text)]
    assert len(written) > 8
    assert [text for text, name in written if text.lower() not in name.lower()] == []


def test_two_tables_have_two_names(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(page_html(fake_run(5, 4), fake_run(5, 4, seed=1), ("before", "after")), tmp_path / "two.html")
    names = [name or "" for name in page.locator("[role=grid]").evaluate_all("(all) => all.map((el) => el.ariaLabel)")]
    assert [name.split(":")[0] for name in names] == ["before", "after"]
    page.get_by_role("radio", name="difference").check(force=True)
    assert str(page.get_by_role("grid").get_attribute("aria-label")).startswith("before → after: ")
