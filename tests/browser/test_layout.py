"""The explorer's layout: in hosts that attach it late, with many candidates, in narrow columns, on paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_run import fake_run
from reading import place, settle

from lens_magic.view import page_html, table_html
from lens_magic.view.text import visible

if TYPE_CHECKING:
    from conftest import Visit

pytestmark = pytest.mark.browser


def test_the_strip_is_drawn_in_a_host_that_is_late(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(page_html(fake_run(90, 40)), tmp_path / "run.html")
    page.wait_for_function("() => document.querySelector('.lens-overview canvas').width === 40")
    page.evaluate(
        """() => {
          const main = document.getElementById("lens");
          const root = main.firstElementChild;
          root.remove(); // as it is before a host has put it into its document
          root.querySelector("[aria-label='Swap rows and columns']").click();
          return new Promise((done) => setTimeout(() => { main.append(root); done(); }, 100));
        }"""
    )
    page.wait_for_function("() => document.querySelector('.lens-overview canvas').width === 90")


@pytest.mark.parametrize("mode", ["table", "one token"])
def test_many_candidates_do_not_push_the_rest_away(visit: Visit, tmp_path: Path, mode: str) -> None:
    page = visit.open(page_html(fake_run(30, 8, k=40)), tmp_path / "run.html")
    page.get_by_role("radio", name=mode).check(force=True)
    settle(page)
    sizes = page.evaluate(
        """() => {
          const box = (name) => document.querySelector(name).getBoundingClientRect();
          return [box(".lens-detail").height, box(".lens-facts dd:last-child").bottom - box(".lens-facts").top];
        }"""
    )
    assert sizes[0] < 520
    assert sizes[1] < 130  # six lines, not spread over the height of the list beside them
    last = page.locator(".lens-candidate").last
    last.focus()
    inside = "(el) => el.getBoundingClientRect().bottom <= el.closest('.lens-list').getBoundingClientRect().bottom + 1"
    assert last.evaluate(inside)


def test_columns_far_into_a_group_say_whose_they_are(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(page_html(fake_run(3, 4, k=40)), tmp_path / "run.html")
    page.get_by_role("radio", name="one token").check(force=True)
    page.get_by_role("grid").evaluate("(el) => el.scrollTo(el.scrollWidth / 2, 0)")
    settle(page)
    names = page.locator(".lens-group-name").all_inner_texts()
    assert set(names) == {"", "mlp_out"}


def test_on_paper(visit: Visit, tmp_path: Path) -> None:
    """Shades are printed, of a static table all rows are, and charts fit though nothing is drawn anew."""
    run = fake_run(40, 6)
    page = visit.open(page_html(run), tmp_path / "run.html")
    settle(page)
    page.emulate_media(media="print")
    # One question of the document: a cell found first and asked then may have been drawn anew between the two.
    adjust = "(name) => getComputedStyle(document.querySelector(name)).printColorAdjust"
    assert page.evaluate(adjust, "[role=gridcell]") == "exact"
    sticks_out = page.evaluate(
        """() => {
          document.querySelector(".lens-root").style.width = "500px"; // and measured before anything can hear of it
          const right = (el) => el.getBoundingClientRect().right;
          return [...document.querySelectorAll(".lens-panel svg")].map((svg) => right(svg) - right(svg.parentElement));
        }"""
    )
    assert max(sticks_out) < 1
    page = visit.open(f"<body>{table_html(run)}", tmp_path / "table.html")
    assert page.evaluate(adjust, "td") == "exact"
    assert page.locator(".lens-box").first.evaluate("(el) => el.scrollHeight - el.clientHeight") <= 0


@pytest.mark.parametrize(("positions", "layers", "rows"), [(40, 14, 40), (1000, 20, 600)])
def test_a_table_is_on_paper_as_a_whole(visit: Visit, tmp_path: Path, positions: int, layers: int, rows: int) -> None:
    """All rows and columns with their numbers, as far as there are not too many; and nothing that could only be pressed."""
    run = fake_run(positions, layers)
    page = visit.open(page_html(run), tmp_path / "run.html")
    settle(page)
    page.evaluate(
        """() => addEventListener("beforeprint", () => {
          window.printed = [...document.querySelectorAll(".lens-paper tbody tr")].map((row) => [...row.children].map(
            (el) => [el.textContent, el.firstChild.dataset?.n]));
        })"""
    )
    page.pdf()
    assert page.locator(".lens-paper").count() == 0, "and is gone afterwards"
    printed = page.evaluate("() => window.printed")
    blocks = [printed[i : i + rows] for i in range(0, len(printed), rows)]
    tokens = run.dataset.token_id.sel(site="resid_post").values[..., 0]
    for position, parts in enumerate(zip(*blocks, strict=True)):
        cells = [cell for _, *part in parts for cell in part]
        assert [text for text, _ in cells] == [visible(run.token_texts[int(token)]) for token in tokens[:, position]]
        assert all(number for _, number in cells)
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})
    for name in ("controls", "segments", "menu", "tools", "overview", "scroll", "small"):
        assert page.locator(f".lens-{name}:visible").count() == 0, name
    cut = """() => {
      const all = (names) => [...document.querySelectorAll(names)];
      const below = all(".passage, .lens-list").filter((el) => el.scrollHeight > el.clientHeight + 1);
      const beside = all(".lens-paper table").filter((el) => el.getBoundingClientRect().right > innerWidth);
      return below.length + beside.length;
    }"""
    assert page.evaluate(cut) == 0
    left_out = page.get_by_text("600 of 1,000 rows (")
    assert left_out.is_visible() == (rows < positions)


def test_the_frame_of_a_static_table_is_as_wide_as_the_table(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(f"<body>{table_html(fake_run(4, 2))}", tmp_path / "table.html")
    assert page.locator(".lens-box").first.evaluate("(el) => el.clientWidth - el.firstElementChild.offsetWidth") == 0


@pytest.mark.parametrize("visit", [{"color_scheme": "dark"}], indirect=True)
def test_paper_is_not_dark(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(page_html(fake_run(9, 6)), tmp_path / "run.html")
    colours = "() => ['body', '.lens-root'].map((name) => getComputedStyle(document.querySelector(name)).backgroundColor)"
    assert page.evaluate(colours) == ["rgb(20, 23, 28)"] * 2
    page.emulate_media(media="print")
    assert page.evaluate(colours) == ["rgb(255, 255, 255)"] * 2


def test_a_wide_page_leaves_no_token_cut_and_a_narrow_one_shows_tokens_first(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(9, 8)
    run.token_texts.update(dict.fromkeys(run.token_texts, " Massachusetts"))
    page = visit.open(page_html(run), tmp_path / "run.html")
    cell = "document.querySelector('[role=gridcell]')"
    numbers = f"getComputedStyle({cell}, '::after').content"
    page.set_viewport_size({"width": 2000, "height": 800})
    page.wait_for_function(f"() => {numbers} !== 'none' && {cell}.scrollWidth <= {cell}.clientWidth")
    page.set_viewport_size({"width": 800, "height": 800})
    page.wait_for_function(f"() => {numbers} === 'none'")


def test_more_width_does_not_take_the_numbers_from_cells(visit: Visit, tmp_path: Path) -> None:
    """The details are beside the table where there is room for both."""
    page = visit.open(page_html(fake_run(300, 8)), tmp_path / "run.html")
    beside = []
    for width in range(920, 1400, 40):
        page.set_viewport_size({"width": width, "height": 800})
        settle(page)
        settle(page)
        assert page.locator(".lens-numbers").count() == 1, width
        table, details = (page.locator(name).bounding_box() for name in (".lens-table", ".lens-details"))
        assert table
        assert details
        beside.append(details["x"] > table["x"] + table["width"])
        assert beside[-1] or details["y"] > table["y"] + table["height"]
    assert beside == sorted(beside), "not to and fro"
    assert not beside[0]
    assert beside[-1]
    page.set_viewport_size({"width": 1100, "height": 800})
    page.get_by_label("Larger cells").click()  # these have their numbers in any case
    settle(page)
    settle(page)
    assert page.locator(".lens-details").bounding_box()["width"] == 272


def test_a_page_opens_at_the_answer_of_a_long_prompt_and_at_the_last_of_many_layers(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(page_html(fake_run(30, 40, prompt_positions=900, vocabulary=500)), tmp_path / "run.html")
    settle(page)
    above, below = page.evaluate(
        """() => {
          const box = document.querySelector(".passage").getBoundingClientRect();
          const [line] = document.querySelector(".passage mark").getClientRects(); // the first of its lines
          return [line.top - box.top, box.bottom - line.bottom];
        }"""
    )
    assert above > 20  # a line of the prompt
    assert below > 20
    grid = page.get_by_role("grid")
    row = grid.locator(".lens-rowhead.lens-first").bounding_box()
    box = grid.bounding_box()
    assert row
    assert box
    assert box["y"] + 100 < row["y"] < box["y"] + box["height"] - 100
    assert grid.evaluate("(el) => el.scrollLeft + el.clientWidth - el.scrollWidth") == pytest.approx(0, abs=1)
    cell = grid.locator(f"#{grid.get_attribute('aria-activedescendant')}").bounding_box()  # whose details are shown
    assert cell
    assert box["x"] < cell["x"] < cell["x"] + cell["width"] <= box["x"] + box["width"]


def test_a_page_of_a_short_prompt_or_of_a_prompt_alone_opens_at_its_beginning(visit: Visit, tmp_path: Path) -> None:
    for run in (fake_run(90, 6, prompt_positions=2), fake_run(0, 6, prompt_positions=900)):
        page = visit.open(page_html(run), tmp_path / "run.html")
        settle(page)
        scrolled = "() => [...document.querySelectorAll('.passage, [role=grid]')].map((el) => el.scrollTop)"
        assert page.evaluate(scrolled) == [0, 0]


def test_each_line_of_a_prompt_has_its_own_direction(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(3, 2)
    run.prompt = "שלום\nHello, and\nמרחבא"
    page = visit.open(page_html(run), tmp_path / "run.html")
    sides = page.evaluate(
        """() => {
          const passage = document.querySelector(".passage");
          const box = passage.getBoundingClientRect();
          const text = passage.firstChild;
          const at = (word) => {
            const range = document.createRange();
            range.setStart(text, text.data.indexOf(word));
            range.setEnd(text, text.data.indexOf(word) + word.length);
            return range.getBoundingClientRect();
          };
          return [box.right - at("שלום").right, at("Hello").left - box.left, box.right - at("מרחבא").right];
        }"""
    )
    assert max(sides) < 14  # the padding is 12


def test_labels_of_rows_are_level_with_their_cells(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(page_html(fake_run(20, 6)), tmp_path / "run.html")

    def off() -> float:
        """The greatest distance between the middles of a row's label and of its cells."""
        return float(
            page.evaluate(
                """() => Math.max(...[...document.querySelectorAll(".lens-row")].map((row) => {
                  const middle = (el) => el.getBoundingClientRect().top + el.getBoundingClientRect().height / 2;
                  const labels = [...row.querySelector(".lens-rowhead").children];
                  return Math.max(...labels.map((el) => Math.abs(middle(el) - middle(row.querySelector(".lens-cell")))));
                }))"""
            )
        )

    assert off() < 2
    page.get_by_label("Swap rows and columns").click()
    page.get_by_role("radio", name="all").check(force=True)
    settle(page)
    assert off() < 2


@pytest.mark.parametrize(("width", "rows"), [(360, 2), (600, 2), (954, 1)])
def test_controls_take_few_rows_and_what_a_search_finds_is_said_whole(
    visit: Visit, tmp_path: Path, width: int, rows: int
) -> None:
    page = visit.open(page_html(fake_run(16, 8)), tmp_path / "run.html")
    page.set_viewport_size({"width": width, "height": 900})
    top = "(el) => el.getBoundingClientRect().top"
    for mode in ("table", "one token"):
        page.get_by_role("radio", name=mode).check(force=True)
        settle(page)
        more = width == 360 and mode == "one token"  # a token and a choice beside it are too wide
        assert page.locator(".lens-controls").evaluate("(el) => el.clientHeight") <= (rows + more) * 36
        before = page.get_by_role("grid").evaluate(top)
        page.get_by_label("Find a token").fill("the")
        page.keyboard.press("Enter")
        settle(page)
        status = page.locator(".lens-found-status")
        assert re.fullmatch(r"1 of \d+ · position \d+, layer \d", status.inner_text())
        assert status.evaluate("(el) => el.scrollWidth <= el.clientWidth")
        assert page.get_by_label("Find a token").evaluate("(el) => el.clientWidth") >= 85
        assert width < 601 or page.get_by_role("grid").evaluate(top) == before
        page.get_by_label("Clear the search").click()


@pytest.mark.parametrize("width", [400, 800, 1000])
def test_what_is_said_is_not_cut(visit: Visit, tmp_path: Path, width: int) -> None:
    """A message, the run's size, that it was interrupted; of a model's folder the last part, and the rest when asked."""
    run = fake_run(200, 20)
    run.model = "/models/some-organisation/" + 3 * "a-long-name-" + "step-120000"
    run.interrupted = True
    page = visit.open(page_html(run), tmp_path / "run.html")
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_role("grid").focus()
    page.keyboard.press("Control+Home")
    page.keyboard.press("Control+Shift+End")
    page.get_by_label("Copy and save").click()
    page.get_by_text("Save as PNG").click()
    said = page.get_by_text("4,000 cells are too many for a picture; select at most 3,000")
    sizes = page.get_by_text("200 positions × 20 layers · interrupted")
    for text in (said, sizes):
        inside = """(el) => {
          const [box, root] = [el, document.querySelector(".lens-root")].map((one) => one.getBoundingClientRect());
          return box.left >= root.left && box.right <= root.right && el.scrollWidth <= el.clientWidth + 1 && box.width > 40;
        }"""
        assert text.evaluate(f"(el) => getComputedStyle(el).overflow === 'visible' && ({inside})(el)")
        assert text.evaluate("(el) => getComputedStyle(el.parentElement).overflow") == "visible"
    name = page.locator(".lens-title strong")
    assert name.inner_text() == run.model.split("/")[-1]
    assert name.get_attribute("title") == run.model


def test_on_a_narrow_page_every_choice_can_be_read(visit: Visit, tmp_path: Path) -> None:
    sites = ("resid_pre", "attn_out", "post_ln", "mlp_out", "resid_post")
    page = visit.open(page_html(fake_run(20, 8, sites=sites)), tmp_path / "run.html")
    page.set_viewport_size({"width": 400, "height": 900})
    cut = """() => [...document.querySelectorAll(".lens-segments span")].filter((el) => el.scrollWidth > el.clientWidth
      || el.getBoundingClientRect().bottom > el.closest(".lens-segments").getBoundingClientRect().bottom)
      .map((el) => el.textContent)"""
    assert page.evaluate(cut) == []
    page.get_by_role("radio", name="post_ln").focus()
    page.keyboard.press("ArrowRight")
    assert place(page).startswith("mlp_out")
    page = visit.open(page_html(fake_run(20, 8, sites=sites[-1:])), tmp_path / "one.html")
    assert page.evaluate(cut) == [], "the only one"


def test_a_sample_in_the_legend_is_on_one_line(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(9, 6)
    run.token_texts.update(dict.fromkeys(run.token_texts, " a-token-as-long-as-these-are-when-they-are-part-of-addresses"))
    page = visit.open(page_html(run), tmp_path / "run.html")
    page.set_viewport_size({"width": 400, "height": 900})
    page.get_by_label("Find a token").fill(f"#{run.output_ids[0]}")
    page.keyboard.press("Enter")
    settle(page)
    heights = page.locator(".lens-key:visible i").evaluate_all("(all) => all.map((el) => el.offsetHeight)")
    assert len(heights) == 3
    assert len(set(heights)) == 1


@pytest.mark.parametrize("visit", [{"forced_colors": "active"}], indirect=True)
def test_choices_and_marks_are_seen_in_forced_colours(visit: Visit, tmp_path: Path) -> None:
    """There backgrounds and shadows are dropped."""
    run, other = fake_run(9, 6, seed=3), fake_run(9, 6, seed=3)
    other.dataset["token_id"].values[:, 2] = run.dataset.token_id.values[:, 2, :, ::-1]
    page = visit.open(page_html(run, other), tmp_path / "run.html")

    def looks(selector: str, *names: str) -> set[str]:
        return set(
            page.evaluate(
                """([selector, names]) => [...document.querySelectorAll(selector)].filter((el) => el.offsetParent).map((el) => {
                  const style = getComputedStyle(el);
                  return names.map((name) => style[name]).join(" ");
                })""",
                [selector, names],
            )
        )

    def tell_apart(marked: str, plain: str, *names: str) -> None:
        one, other = looks(marked, *names), looks(plain, *names)
        assert one
        assert other
        assert not one & other

    page.get_by_label("Swap rows and columns").click()
    settle(page)
    colours = ("color", "backgroundColor")
    tell_apart(".lens-segments input:checked + span", ".lens-segments input:not(:checked) + span", *colours)
    tell_apart("[aria-pressed=true]", ".lens-tools .lens-button:not([aria-pressed])", *colours)
    page.get_by_label("Find a token").fill("the")
    tell_apart(".lens-found-list [aria-selected=true]", ".lens-found-list [aria-selected=false]", *colours)
    page.keyboard.press("Enter")
    settle(page)
    frame = ("borderTopStyle", "borderTopWidth", "borderLeftWidth")
    for mark in ("found", "settles"):
        tell_apart(f".lens-cell.lens-{mark}", ".lens-cell:not(.lens-found, .lens-settles)", *frame)
        tell_apart(f".lens-{mark}-sample", ".lens-hit-sample", *frame)
    page.get_by_role("radio", name="difference").check(force=True)
    settle(page)
    tell_apart(".lens-cell.lens-changed", ".lens-cell:not(.lens-changed, .lens-found)", *frame)
    assert "dashed 1px 1px" in looks(".lens-changed-sample", *frame)
