"""The explorer in a real browser, opened from disk as a stand-alone page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_run import FakeRun, encoded, fake_run
from reading import NODES, check, expected, place, scroll

from lens_magic.view import bundle, page_html
from lens_magic.view.data import Shown, pack
from lens_magic.view.static_table import fallback_html
from lens_magic.view.text import visible

if TYPE_CHECKING:
    from conftest import Visit
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def test_scrolls_both_ways_over_the_right_cells(visit: Visit, big: FakeRun, big_html: str, tmp_path: Path) -> None:
    page = visit.open(big_html, tmp_path / "big.html")
    check(page, big, "resid_post")
    for left, top in ((1500, 0), (0, 9000), (2500, 20_000), (1_000_000, 10_000_000), (700, 30)):
        scroll(page, left, top)
        check(page, big, "resid_post")
    scroll(page, 1_000_000, 10_000_000)
    cells = check(page, big, "resid_post")
    assert max(c["row"] for c in cells) == 1499
    assert max(c["col"] for c in cells) == 79


def test_headers_stay_and_name_what_is_beside_them(visit: Visit, big: FakeRun, big_html: str, tmp_path: Path) -> None:
    page = visit.open(big_html, tmp_path / "big.html")
    scroll(page, 2000, 12_345)
    heads = page.evaluate(
        """() => {
          const grid = document.querySelector("[role=grid]").getBoundingClientRect();
          const box = (el) => el.getBoundingClientRect();
          const columns = [...document.querySelectorAll(".lens-colhead")].map((el) => [box(el).left, el.textContent]);
          const rows = [...document.querySelectorAll(".lens-rowhead")].map((el) => [box(el).top, el.textContent]);
          const cell = document.querySelectorAll(".lens-cell")[40];
          const top = box(document.querySelector(".lens-headrow")).top - grid.top;
          const left = box(document.querySelector(".lens-rowhead")).left - grid.left;
          return { columns, rows, top, left, cell: [box(cell).left, box(cell).top, cell.ariaColIndex - 2,
                   cell.parentElement.ariaRowIndex - 2] };
        }"""
    )
    assert heads["top"] == heads["left"] == 1  # the frame's border
    x, y, layer, index = heads["cell"]
    assert dict(map(tuple, heads["columns"]))[x] == str(layer)
    target = visible(big.token_texts[big.output_ids[index]])
    assert dict(map(tuple, heads["rows"]))[y] == f"{index}{target}"


def test_few_nodes_whatever_the_run_and_the_window(visit: Visit, big_html: str, tmp_path: Path) -> None:
    page = visit.open(big_html, tmp_path / "big.html")
    for width, height in ((400, 800), (1200, 800), (2000, 1200), (2560, 1600)):
        page.set_viewport_size({"width": width, "height": height})
        page.locator("[aria-label='Smaller cells']").click()
        for _ in range(4):
            page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            assert page.evaluate(NODES) < 1500
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
            more = page.locator("[aria-label='Larger cells']")
            if more.is_enabled():
                more.click()


def test_the_site_switch_changes_the_cells_and_keeps_the_place(
    visit: Visit, big: FakeRun, big_html: str, tmp_path: Path
) -> None:
    page = visit.open(big_html, tmp_path / "big.html")
    scroll(page, 1000, 5000)
    for site in ("attn_out", "mlp_out"):
        page.get_by_role("radio", name=site).check(force=True)
        cells = check(page, big, site)
        assert min(c["row"] for c in cells) > 150
    page.get_by_role("radio", name="mlp_out").press("ArrowRight")
    check(page, big, "resid_post")


def test_hover_shows_the_candidates(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(20, 8, prompt_positions=4)
    page = visit.open(page_html(run), tmp_path / "run.html")
    cell = page.locator("[role=row][aria-rowindex='7'] [role=gridcell][aria-colindex='5']")
    cell.hover()
    assert place(page) == "resid_post · layer 3 · position 1"
    data = run.dataset.sel(site="resid_post", layer=3, position=1)
    rows = page.locator(".lens-candidates tbody tr").all()
    assert len(rows) == 5
    for row, token, prob, share, logit in zip(
        rows, data.token_id.values, data.prob.values, data.prob_topk.values, data.logit.values, strict=True
    ):
        name, shown_prob, shown_share, shown_logit = row.locator("td").all_inner_texts()
        assert name == visible(run.token_texts[int(token)])
        for text, value in ((shown_prob, prob), (shown_share, share)):
            if text.endswith("%") and not text.startswith(">"):
                assert float(text[:-1]) == pytest.approx(100 * value, rel=0.01, abs=0.06)
        assert float(shown_logit.replace("−", "-")) == pytest.approx(float(logit), abs=0.006)
    facts = page.locator(".lens-facts dd").all_inner_texts()
    assert facts[0].replace(",", "") == str(int(data.target_rank))
    assert float(facts[2].split()[0]) == pytest.approx(float(data.entropy), abs=0.006)


def test_keys_move_the_focused_cell(visit: Visit, big: FakeRun, big_html: str, tmp_path: Path) -> None:
    page = visit.open(big_html, tmp_path / "big.html")
    grid = page.get_by_role("grid")
    grid.focus()
    for keys, layer, position in (
        ("Control+Home", 0, 0),
        ("ArrowDown", 0, 1),
        ("ArrowRight", 1, 1),
        ("ArrowRight", 2, 1),
        ("ArrowLeft", 1, 1),
        ("ArrowUp", 1, 0),
        ("ArrowUp", 1, 0),
        ("End", 79, 0),
        ("Control+End", 79, 1499),
        ("Home", 0, 1499),
    ):
        page.keyboard.press(keys)
        assert place(page) == f"resid_post · layer {layer} · position {position}", keys
        active = page.locator(f"#{grid.get_attribute('aria-activedescendant')}")
        assert active.get_attribute("aria-selected") == "true"
        assert active.inner_text() == expected(big, "resid_post", layer, position)
        assert page.locator("[aria-selected=true]").count() == 1
    page.keyboard.press("PageUp")
    assert 1400 < int(place(page).split()[-1]) < 1499
    check(page, big, "resid_post")


def test_large_cells_show_all_candidates(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(20, 8)
    page = visit.open(page_html(run), tmp_path / "run.html")
    page.locator("[aria-label='Larger cells']").click()
    page.locator("[aria-label='Larger cells']").click()
    cell = page.locator("[aria-selected=true]")
    names, probs = cell.locator("span").all_inner_texts()
    data = run.dataset.sel(site="resid_post", layer=7, position=0)
    shown = [visible(run.token_texts[int(i)]) for i in data.token_id.values]
    assert names.split("\n") == shown
    assert len(probs.split("\n")) == 5


def test_rows_and_columns_swap(visit: Visit, big: FakeRun, big_html: str, tmp_path: Path) -> None:
    page = visit.open(big_html, tmp_path / "big.html")
    page.locator("[aria-label='Swap rows and columns']").click()
    check(page, big, "resid_post", transposed=True)
    scroll(page, 40_000, 900)
    check(page, big, "resid_post", transposed=True)
    page.locator("[aria-label='Swap rows and columns']").click()
    check(page, big, "resid_post")


def test_hostile_tokens_are_text(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(60, 10, hostile=True)
    page = visit.open(page_html(run), tmp_path / "run.html")
    check(page, run, "resid_post")
    scroll(page, 0, 800)
    check(page, run, "resid_post")
    for _ in range(2):
        page.locator("[aria-label='Larger cells']").click()
    page.locator("[role=gridcell]").nth(3).hover()
    page.wait_for_timeout(300)
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("visit", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_text_over_the_deepest_shade_is_readable(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(3, 3)
    run.dataset["prob"][...] = 1.0
    page = visit.open(page_html(run), tmp_path / "run.html")
    ratio = page.evaluate(
        """() => {
          const parts = (css) => css.match(/[\\d.]+/g).map(Number);
          const style = (query) => getComputedStyle(document.querySelector(query));
          const [under, over, text] = [parts(style(".lens-root").backgroundColor),
            parts(style(".lens-cell").backgroundColor), parts(style(".lens-cell").color)];
          const alpha = over[3] ?? 1;
          const back = [0, 1, 2].map((i) => under[i] * (1 - alpha) + over[i] * alpha);
          const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
          const light = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
          const [a, b] = [light(back), light(text)].sort((x, y) => y - x);
          return { alpha, ratio: (a + 0.05) / (b + 0.05) };
        }"""
    )
    assert ratio["alpha"] > 0.5
    assert ratio["ratio"] >= 4.5


@pytest.mark.parametrize("shape", [(1, 1, ["resid_post"], 1), (1, 40, ["mlp_out"], 3), (50, 1, ["attn_out"], 1)])
def test_the_smallest_runs(visit: Visit, shape: tuple[int, int, list[str], int], tmp_path: Path) -> None:
    positions, layers, sites, k = shape
    run = fake_run(positions, layers, sites, k)
    page = visit.open(page_html(run), tmp_path / "run.html")
    assert place(page) == f"{sites[0]} · layer {layers - 1} · position 0"
    page.get_by_role("grid").focus()
    page.keyboard.press("Control+End")
    assert place(page) == f"{sites[0]} · layer {layers - 1} · position {positions - 1}"


def test_no_positions(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(page_html(fake_run(0, 4)), tmp_path / "run.html")
    assert "no positions" in page.locator(".lens-empty").inner_text()


def as_widget(visit: Visit, path: Path, run: FakeRun, style: str = "") -> Page:
    """Draw a run by anywidget's entry, on a stand-in for its model, with buffers at odd offsets as messages may hold them."""
    packed = pack(run)
    entry = "export default { render };"
    assert bundle.script().count(entry) == 1
    table = fallback_html([Shown(run)], "abc")
    page = visit.open(f"<!DOCTYPE html><style>{bundle.style()}</style><div id=out style='{style}'></div>{table}", path)
    page.add_script_tag(type="module", content=bundle.script().replace(entry, "globalThis.lensRender = render;"))
    buffers = encoded(packed.to_bytes())
    page.wait_for_function("() => globalThis.lensRender")
    page.evaluate(
        """([header, encoded]) => {
          const buffers = {};
          for (const [name, text] of Object.entries(encoded)) {
            const bytes = Uint8Array.from("-" + atob(text), (c) => c.charCodeAt(0));
            buffers[name] = new DataView(bytes.buffer, 1);
          }
          const state = { header, buffers, selected: {}, fallback: "abc" };
          const handlers = {};
          globalThis.model = {
            get: (name) => state[name],
            set: (name, value) => (state[name] = value),
            send() {},
            save_changes: () => (globalThis.saved = state.selected),
            on: (event, handler) => (handlers[event] = handler),
            off: (event) => delete handlers[event],
            handlers,
          };
          globalThis.leave = lensRender({ model, el: document.getElementById("out") });
        }""",
        [packed.header, buffers],
    )
    return page


def test_as_a_widget_the_selection_goes_both_ways(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(200, 40)
    page = as_widget(visit, tmp_path / "empty.html", run)
    check(page, run, "resid_post")
    assert page.evaluate("() => getComputedStyle(document.querySelector('.lens-fallback')).display") == "none"
    page.locator("[role=row][aria-rowindex='4'] [role=gridcell][aria-colindex='40']").click()
    assert page.evaluate("() => saved") == {"site": "resid_post", "layer": 38, "position": 2}
    page.evaluate(
        """() => {
          saved = null;
          model.set("selected", { site: "mlp_out", layer: 33, position: 150 });
          model.handlers["change:selected"]();
        }"""
    )
    assert place(page) == "mlp_out · layer 33 · position 150"
    assert page.evaluate("() => saved") is None  # following is not choosing
    assert page.locator("[aria-selected=true]").inner_text() == expected(run, "mlp_out", 33, 150)
    page.evaluate("() => leave()")
    assert page.locator(".lens-root").count() == 0
    page.locator(".lens-fallback").wait_for(state="visible")
    assert page.evaluate("() => Object.keys(model.handlers)") == []


def test_a_widget_that_comes_into_view_later_opens_at_the_answer_too(visit: Visit, tmp_path: Path) -> None:
    """As in a notebook behind another tab."""
    page = as_widget(visit, tmp_path / "empty.html", fake_run(30, 6, prompt_positions=900, vocabulary=500), "display: none")
    page.evaluate("() => (document.getElementById('out').style.display = '')")
    row, grid = page.locator(".lens-rowhead.lens-first"), page.get_by_role("grid")
    row.wait_for()
    middle = "(el) => { const box = el.getBoundingClientRect(); return box.top + box.height / 2; }"
    assert abs(row.evaluate(middle) - grid.evaluate(middle)) < 60
    scroll(page, 0, 1000)
    page.evaluate("() => { out.style.display = 'none'; requestAnimationFrame(() => (out.style.display = '')); }")
    page.evaluate("() => new Promise((done) => setTimeout(done, 200))")
    assert grid.evaluate("(el) => el.scrollTop") == 1000  # once; then it is where its reader left it
