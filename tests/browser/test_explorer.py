"""The explorer's functions beyond scrolling, in a real browser, compared with the numbers the runs were made of."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fake_run import FakeRun, encoded, fake_run, track, without_last_layer, without_numbers
from reading import cells, number, place, scroll, settle
from test_live import open_widget

from lens_magic.view import Explorer, page_html
from lens_magic.view.text import visible

if TYPE_CHECKING:
    from conftest import Visit
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

LAYERS, POSITIONS = 6, 9


@pytest.fixture(scope="module")
def run() -> FakeRun:
    return track(fake_run(POSITIONS, LAYERS, seed=3), [4])


@pytest.fixture
def page(visit: Visit, run: FakeRun, tmp_path: Path) -> Page:
    return visit.open(page_html(run), tmp_path / "run.html")


def shown(run: FakeRun, index: int) -> str:
    return visible(run.token_texts[int(index)])


def shade_by(page: Page, value: str) -> None:
    page.get_by_label("Shade by").select_option(value)
    settle(page)


@pytest.mark.parametrize(
    ("shading", "variable", "tolerance"),
    [("prob", "prob", 0.0051), ("target", "target_prob", 0.0051), ("entropy", "entropy", 0.51), ("kl", "kl_final", 0.51)],
)
def test_the_number_in_a_cell_is_the_measure_chosen(
    page: Page, run: FakeRun, shading: str, variable: str, tolerance: float
) -> None:
    shade_by(page, shading)
    data = run.dataset[variable].sel(site="resid_post")
    for (position, layer), cell in cells(page).items():
        value = data.values[layer, position] if data.ndim == 2 else data.values[layer, position, 0]
        assert number(cell["number"]) == pytest.approx(float(value), abs=tolerance), cell
    legend = page.locator(".lens-legend-what").inner_text()
    names = {
        "prob": "probability of the top token, of the whole vocabulary",
        "target": "probability of the next token, of the whole vocabulary",
        "entropy": "entropy in nats",
        "kl": "KL to the output in nats",
    }
    assert legend == names[shading]


def test_shading_by_rank_is_deepest_where_the_token_is_first(page: Page, run: FakeRun) -> None:
    shade_by(page, "rank")
    ranks = run.dataset.target_rank.sel(site="resid_post").values
    depth: dict[int, float] = {}
    for (position, layer), cell in cells(page).items():
        colour = [float(part) for part in re.findall(r"[\d.]+", cell["shade"])]
        depth[int(ranks[layer, position])] = colour[3] if len(colour) > 3 else 1.0
    ordered = [depth[rank] for rank in sorted(depth)]
    assert ordered == sorted(ordered, reverse=True)
    assert ordered[0] > 0.5
    assert ordered[-1] < 0.1


def test_a_cell_without_numbers_has_no_shade_and_no_number(visit: Visit, tmp_path: Path) -> None:
    run = without_numbers(track(fake_run(POSITIONS, LAYERS, seed=3), [4]), layer=2, position=5)
    page = visit.open(page_html(run, run), tmp_path / "run.html")
    for shading in page.get_by_label("Shade by").locator("option").evaluate_all("(all) => all.map((one) => one.value)"):
        shade_by(page, shading)
        found = cells(page)
        assert found[5, 2]["number"] == "–"
        assert found[5, 2]["shade"].endswith(", 0)")
        assert shading == "target" or "–" not in {cell["number"] for at, cell in found.items() if at != (5, 2)}
    page.get_by_role("radio", name="difference").check(force=True)
    settle(page)
    assert cells(page)[5, 2]["number"] == "–"
    page.locator("[role=row][aria-rowindex='7'] [role=gridcell][aria-colindex='4']").first.click()
    assert page.locator(".lens-facts dd").all_inner_texts()[:4] == ["–"] * 4
    for row in page.locator(".lens-candidates tbody tr").all()[:5]:
        assert row.locator("td").all_inner_texts()[1:] == ["–", "–", "–"]
    page.get_by_role("radio", name="one token").check(force=True)
    page.get_by_label("Copy and save").click()
    with page.expect_download() as download:
        page.get_by_text("Save as SVG").click()
    assert "NaN" not in Path(download.value.path()).read_text(encoding="utf-8")


def test_a_cell_without_numbers_has_no_mark(visit: Visit, tmp_path: Path) -> None:
    """Neither that of the token that came next nor that of the one looked for, which are first in the cell and the next."""
    run = fake_run(POSITIONS, LAYERS, seed=3)
    target = run.output_ids[5]
    run.dataset["token_id"].values[:, 2:4, 5] = [target, *(token for token in range(6) if token != target)][:5]
    page = visit.open(page_html(without_numbers(run, layer=2, position=5)), tmp_path / "run.html")
    page.get_by_label("Find a token").fill(f"#{target}")
    page.keyboard.press("Enter")
    page.locator("[role=row][aria-rowindex='7'] [role=gridcell][aria-colindex='4']").click()
    assert place(page) == "resid_post · layer 2 · position 5"
    assert page.locator(".lens-candidates .lens-hit").count() == 0
    marks = {"lens-hit", "lens-found"}
    found = cells(page)
    assert marks.isdisjoint(found[5, 2]["classes"])
    assert marks <= set(found[5, 3]["classes"])
    page.get_by_role("radio", name="one token").check(force=True)
    settle(page)
    found = cells(page)
    assert marks.isdisjoint(found[2, 0]["classes"])
    assert marks <= set(found[3, 0]["classes"])


def test_shading_by_a_tracked_token(page: Page, run: FakeRun) -> None:
    option = page.get_by_label("Shade by").locator("option", has_text=f"probability of {shown(run, 4)}")
    shade_by(page, option.get_attribute("value") or "")
    data = run.dataset.tracked_prob.sel(site="resid_post", tracked=4).values
    for (position, layer), cell in cells(page).items():
        assert number(cell["number"]) == pytest.approx(float(data[layer, position]), abs=0.0051)


def test_either_convention_and_which_is_shown(page: Page, run: FakeRun) -> None:
    page.get_by_label("Probability over").select_option("k")
    settle(page)
    data = run.dataset.prob_topk.sel(site="resid_post").values
    for (position, layer), cell in cells(page).items():
        assert number(cell["number"]) == pytest.approx(float(data[layer, position, 0]), abs=0.0051)
    assert page.locator(".lens-legend-what").inner_text() == "probability of the top token, among the top 5"


def test_where_answers_settle(page: Page, run: FakeRun) -> None:
    first = run.dataset.target_rank.sel(site="resid_post").values == 0  # [layer, position]
    expected = {
        (position, next(layer for layer in range(LAYERS) if first[layer:, position].all()))
        for position in range(POSITIONS)
        if first[-1, position]
    }
    assert expected
    marked = {place for place, cell in cells(page).items() if "lens-settles" in cell["classes"]}
    assert marked == expected
    assert page.get_by_text("stays first from here on").is_visible()
    assert page.get_by_text("settles at").is_visible()


def test_without_the_models_last_layer_no_answer_settles(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(page_html(without_last_layer(fake_run(POSITIONS, LAYERS, seed=3))), tmp_path / "run.html")
    assert page.locator(".lens-settles").count() == 0
    assert page.get_by_text("stays first from here on").is_hidden()
    assert page.get_by_text("settles at").count() == 0


def test_find_goes_to_where_a_token_first_enters_the_candidates(page: Page, run: FakeRun) -> None:
    data = run.dataset.token_id.sel(site="resid_post").values  # [layer, position, k]
    token = int(data[2, 4, 3])
    there = (data == token).any(-1)
    places = [(p, int(there[:, p].argmax())) for p in range(POSITIONS) if there[:, p].any()]
    page.get_by_role("grid").focus()
    page.keyboard.press("/")
    page.keyboard.type(f"#{token}")
    assert page.locator(".lens-found-list").get_by_role("option").count() == 1
    page.keyboard.press("Enter")
    for n, (position, layer) in enumerate([*places, places[0]]):
        status = page.locator(".lens-found-status").inner_text()
        assert status == f"{n % len(places) + 1} of {len(places)} · position {position}, layer {layer}"
        assert place(page) == f"resid_post · layer {layer} · position {position}"
        page.keyboard.press("Enter")
    marked = {(p, layer) for (p, layer), cell in cells(page).items() if "lens-found" in cell["classes"]}
    assert marked == {(int(p), int(layer)) for layer, p in zip(*np.nonzero(there), strict=True)}
    page.keyboard.press("Escape")
    assert not any("lens-found" in cell["classes"] for cell in cells(page).values())
    assert page.evaluate("() => document.activeElement.getAttribute('role')") == "grid"


def test_what_cannot_be_found_is_said(page: Page) -> None:
    page.get_by_label("Find a token").fill("no such thing")
    assert page.locator(".lens-found-status").inner_text() == "not in the top 5 of this site"


def test_a_token_found_is_forgotten_when_the_text_changes(page: Page, run: FakeRun) -> None:
    page.get_by_label("Find a token").fill(f"#{int(run.dataset.token_id.values[2, 2, 4, 3])}")
    page.keyboard.press("Enter")
    found = place(page)
    page.get_by_label("Find a token").fill("no such thing")
    assert page.get_by_label("Next place").is_hidden()
    page.keyboard.press("Enter")
    settle(page)
    assert page.locator(".lens-found-status").inner_text() == "not in the top 5 of this site"
    assert place(page) == found
    assert not any("lens-found" in cell["classes"] for cell in cells(page).values())


def test_layers_are_filtered(page: Page, run: FakeRun) -> None:
    field = page.get_by_label("Layers", exact=True)
    field.fill("::2, -1")
    field.press("Enter")
    settle(page)
    heads = page.locator(".lens-colhead").all_inner_texts()
    assert heads == ["0", "2", "4", "5"]
    for (position, column), cell in cells(page).items():
        layer = [0, 2, 4, 5][column]
        assert cell["text"] == shown(run, run.dataset.token_id.sel(site="resid_post", layer=layer).values[position, 0])
    field.fill("nonsense")
    field.press("Enter")
    assert field.get_attribute("aria-invalid") == "true"
    assert "No such layers: there are" in field.evaluate("(input) => input.validationMessage")
    assert page.locator(".lens-colhead").all_inner_texts() == heads


def test_all_sites_side_by_side(page: Page, run: FakeRun) -> None:
    page.get_by_role("radio", name="all").check(force=True)
    settle(page)
    for (position, column), cell in cells(page).items():
        data = run.dataset.token_id.values[column % 3, column // 3, position, 0]
        assert cell["text"] == shown(run, data)


def test_one_token_with_its_sites_side_by_side(page: Page, run: FakeRun) -> None:
    page.locator("[role=row][aria-rowindex='5'] [role=gridcell][aria-colindex='4']").click()
    page.keyboard.press("Enter")
    settle(page)
    assert page.get_by_role("grid").get_attribute("aria-colcount") == str(3 * 5 + 1)
    for position in (3, 4, 5, 4):
        if position != 3:
            page.keyboard.press("]" if page.locator(".lens-stepper").inner_text().startswith(str(position - 1)) else "[")
            settle(page)
        assert page.locator(".lens-stepper").inner_text() == f"{position} {shown(run, run.output_ids[position])}"
        found = cells(page)
        assert len(found) == LAYERS * 15
        for (layer, column), cell in found.items():
            data = run.dataset.isel(site=column // 5, layer=layer, position=position, k=column % 5)
            assert cell["text"] == shown(run, data.token_id)
            assert number(cell["number"]) == pytest.approx(float(data.prob), abs=0.0051)
            assert ("lens-hit" in cell["classes"]) == (int(data.token_id) == run.output_ids[position])
    page.keyboard.press("Escape")
    settle(page)
    assert page.get_by_role("grid").get_attribute("aria-colcount") == str(LAYERS + 1)
    assert place(page).endswith("position 4")


def test_all_candidates_of_the_site_chosen_are_in_view(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(POSITIONS, LAYERS, sites=("resid_pre", "attn_out", "post_ln", "mlp_out", "resid_post"))
    page = visit.open(page_html(run), tmp_path / "run.html")
    for side, axis in (("right", "aria-colindex"), ("bottom", "aria-rowindex")):
        page.get_by_role("radio", name="one token").check(force=True)
        settle(page)
        inside = page.get_by_role("grid").evaluate(
            """(el, [side, axis]) => {
              const last = [...el.querySelectorAll(".lens-cell")].find((cell) => cell.closest(`[${axis}="26"]`));
              return last && last.getBoundingClientRect()[side] <= el.getBoundingClientRect()[side];
            }""",
            [side, axis],
        )
        assert inside
        page.get_by_role("radio", name="table").check(force=True)
        page.get_by_label("Swap rows and columns").click()


def points(page: Page, panel: int, line: str) -> list[tuple[float, float]]:
    """Where a line of the chart has its dots, in the units of its axes' ticks."""
    path = page.locator(".lens-panel").nth(panel).locator(f".{line} .lens-dots").get_attribute("d") or ""
    ticks = (
        page.locator(".lens-panel")
        .nth(panel)
        .evaluate(
            """(el) => [...el.querySelectorAll(".lens-tick")].map((t) => [t.getAttribute("text-anchor"), +t.getAttribute("x"),
                    +t.getAttribute("y"), t.textContent])"""
        )
    )
    layers = [(x, float(text)) for anchor, x, _, text in ticks if anchor == "middle"]
    values = [(y - 3.5, float(text.replace("k", "e3"))) for anchor, _, y, text in ticks if anchor == "end"]
    if panel:
        values = [(y, math.log1p(value)) for y, value in values]

    def on(scale: list[tuple[float, float]], at: float) -> float:
        (a, low), (b, high) = scale[0], scale[-1]
        return low + (at - a) / (b - a) * (high - low)

    found = [(float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", path)]
    return [(on(layers, x), math.expm1(on(values, y)) if panel else on(values, y)) for x, y in found]


def test_the_chart_follows_the_next_token(page: Page, run: FakeRun) -> None:
    page.locator("[role=row][aria-rowindex='4'] [role=gridcell][aria-colindex='3']").click()
    data = run.dataset.sel(site="resid_post", position=2)
    for (layer, value), expected in zip(points(page, 0, "lens-follow-0"), data.target_prob.values, strict=True):
        assert value == pytest.approx(float(expected), abs=0.005), layer
    for (layer, value), expected in zip(points(page, 1, "lens-follow-0"), data.target_rank.values, strict=True):
        assert math.log1p(value) == pytest.approx(math.log1p(int(expected)), abs=0.06), layer


def test_one_layer_has_no_chart_and_no_legend_of_it(page: Page) -> None:
    chip = page.locator(".lens-followed")
    assert chip.is_visible()
    field = page.get_by_label("Layers", exact=True)
    field.fill("3")
    field.press("Enter")
    assert not chip.is_visible()
    assert not page.locator(".lens-lower").is_visible()
    page.locator(".lens-candidate").first.click()
    assert page.locator(".lens-chip:visible").count() == 1
    field.fill("")
    field.press("Enter")
    assert chip.is_visible()
    assert page.locator(".lens-panel svg").first.bounding_box()["width"] > 300


def test_a_pinned_token_becomes_a_trajectory(page: Page, run: FakeRun) -> None:
    data = run.dataset.sel(site="resid_post", position=2)
    token = int(data.token_id.sel(layer=1).values[1])
    page.locator("[role=row][aria-rowindex='4'] [role=gridcell][aria-colindex='3']").click()
    page.locator(".lens-candidate").nth(1).click()
    there = {
        layer: data.token_id.values[layer].tolist().index(token)
        for layer in range(LAYERS)
        if token in data.token_id.values[layer]
    }
    found = points(page, 0, "lens-line-0")
    assert [round(layer) for layer, _ in found] == sorted(there)
    for layer, value in found:
        assert value == pytest.approx(float(data.prob.values[round(layer), there[round(layer)]]), abs=0.005)
    chip = page.locator(".lens-chip:not(.lens-followed)")
    assert shown(run, token) in chip.inner_text()
    page.locator("[role=row][aria-rowindex='8'] [role=gridcell][aria-colindex='3']").click()
    chip.get_by_title("Go to").click()
    assert place(page).endswith("position 2")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Unpin").click()
    assert page.locator(".lens-line-0").count() == 0


def test_a_pin_that_makes_room_for_another_is_told(page: Page) -> None:
    page.get_by_role("grid").focus()
    page.keyboard.press("Home")
    for _ in range(6):
        page.keyboard.press("p")
        page.keyboard.press("ArrowDown")
    off = page.get_by_role("button", name="Unpin ")
    first = off.first.get_attribute("aria-label") or off.first.get_attribute("title") or ""
    said = page.get_by_role("status").filter(has_text="pins at most")
    assert said.count() == 0
    page.keyboard.press("p")
    said.wait_for()
    assert f"6 pins at most: {first.removeprefix('Unpin ')} at " in said.inner_text()
    assert off.count() == 7  # with the one for all


def test_a_pin_keeps_its_colour(page: Page) -> None:
    """Also when another is gone, whose colour the next one gets."""

    def colours() -> dict[str, str]:
        there = page.locator(".lens-chip:not(.lens-followed)").evaluate_all(
            """(all) => all.map((chip) => {
              const swatch = chip.querySelector(".lens-swatch");
              const line = [...swatch.classList].find((name) => name.startsWith("lens-line-"));
              return [chip.querySelector(".lens-chip-go").title, `${line} ${getComputedStyle(swatch).borderTopColor}`];
            })"""
        )
        lines = (
            page.locator(".lens-panel")
            .first.locator("[class*=lens-line-]")
            .evaluate_all("(all) => all.map((el) => el.classList[1])")
        )
        assert sorted(lines) == sorted(colour.split()[0] for _, colour in there)
        return dict(there)

    page.get_by_role("grid").focus()
    for _ in range(3):
        page.keyboard.press("p")
        page.keyboard.press("ArrowDown")
    before = colours()
    page.get_by_role("button", name="Unpin ").nth(1).click()
    after = colours()
    assert after.items() < before.items()
    page.get_by_role("grid").focus()
    page.keyboard.press("p")
    assert set(colours().values()) == set(before.values())
    for _ in range(5):
        page.keyboard.press("ArrowDown")
        page.keyboard.press("p")
    assert len(set(colours().values())) == 6


def test_a_pinned_cell_is_marked(page: Page) -> None:
    page.locator("[role=row][aria-rowindex='4'] [role=gridcell][aria-colindex='3']").click()
    page.keyboard.press("p")
    settle(page)
    assert [place for place, cell in cells(page).items() if "lens-pinned" in cell["classes"]] == [(2, 1)]
    assert "L1" in page.locator(".lens-chip:not(.lens-followed)").inner_text()
    page.keyboard.press("p")
    settle(page)
    assert page.locator(".lens-chip:not(.lens-followed)").count() == 0


def test_details_lead_to_where_a_token_enters_and_settles(page: Page, run: FakeRun) -> None:
    data = run.dataset.sel(site="resid_post")
    for position in range(POSITIONS):
        target = run.output_ids[position]
        there = (data.token_id.values[:, position] == target).any(-1)
        page.locator(f"[role=row][aria-rowindex='{position + 2}'] [role=gridcell][aria-colindex='{LAYERS + 1}']").click()
        enters, settles = page.locator(".lens-facts dd").all_inner_texts()[4:6]
        assert enters == (f"layer {there.argmax()}" if there.any() else "–")
        if settles != "–":
            page.get_by_role("button", name=f"Go to {settles} of").last.click()
            assert place(page) == f"resid_post · {settles} · position {position}"


def test_bytes_of_tokens(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(3, 2, k=2)
    run.dataset["token_id"][...] = np.array([0, 1])
    run.token_texts.update({0: " é", 1: "\\xe2\\x80"})
    page = visit.open(page_html(run), tmp_path / "run.html")
    assert page.locator(".lens-more").inner_text().endswith("id 0 · bytes 20 c3 a9")
    page.locator(".lens-candidates tbody tr").nth(1).hover()
    assert page.locator(".lens-more").inner_text().endswith("id 1 · bytes e2 80")


def test_the_overview_shows_the_window_and_goes_where_it_is_clicked(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(400, 40)
    page = visit.open(page_html(run), tmp_path / "run.html")
    overview = page.locator(".lens-overview")
    box = overview.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 0.75 * box["height"])
    settle(page)
    rows = [row for row, _ in cells(page)]
    assert min(rows) < 300 < max(rows)
    window = page.locator(".lens-window").bounding_box()
    assert window
    assert window["y"] + window["height"] / 2 == pytest.approx(box["y"] + 0.75 * box["height"], abs=4)
    page.wait_for_timeout(100)
    drawn = overview.locator("canvas").evaluate(
        """(el) => {
          const pixels = el.getContext("2d").getImageData(0, 0, el.width, el.height).data;
          return [el.width, el.height, ...[0, 39, 40 * 399].map((i) => pixels[4 * i + 3])];
        }"""
    )
    assert drawn[:2] == [40, 400]
    prob = run.dataset.prob.sel(site="resid_post").values[..., 0]
    for alpha, (layer, position) in zip(drawn[2:], [(0, 0), (39, 0), (0, 399)], strict=True):
        assert alpha == pytest.approx(255 * min(1, prob[layer, position] * 0.85), abs=2)


def test_the_mark_in_the_overview_is_whole_at_the_end(visit: Visit, big_html: str, tmp_path: Path) -> None:
    page = visit.open(big_html, tmp_path / "big.html")
    for swapped in (False, True):
        if swapped:
            page.get_by_label("Swap rows and columns").click()
        scroll(page, 1_000_000, 1_000_000)
        settle(page)
        strip, mark = (page.locator(name).bounding_box() for name in (".lens-overview", ".lens-window"))
        assert strip
        assert mark
        for at, size in (("x", "width"), ("y", "height")):
            assert mark[size] >= 8
            assert mark[at] + mark[size] == pytest.approx(strip[at] + strip[size], abs=2)
            assert mark[at] + mark[size] <= strip[at] + strip[size]


def test_no_overview_of_what_is_in_view_anyway(page: Page) -> None:
    assert not page.locator(".lens-overview").is_visible()


def test_a_drag_selects_if_it_began_in_a_cell(page: Page) -> None:
    def middle(row: int, column: int) -> tuple[float, float]:
        box = page.locator(f"[role=row][aria-rowindex='{row}'] [role=gridcell][aria-colindex='{column}']").bounding_box()
        assert box
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def selected() -> int:
        return page.locator("[role=gridcell][aria-selected]").count()

    page.mouse.move(*middle(3, 3))
    page.mouse.down()
    page.mouse.move(5, 5)
    page.mouse.move(*middle(5, 4))
    assert selected() == 6
    page.mouse.move(5, 5)
    page.mouse.up()
    assert selected() == 6
    page.mouse.down()  # beside the table
    page.mouse.move(*middle(7, 7))
    page.mouse.move(*middle(8, 7))
    page.mouse.up()
    settle(page)
    assert selected() == 6
    page.mouse.move(*middle(4, 4))  # without a button
    assert selected() == 6


@pytest.mark.parametrize("visit", [{"viewport": {"width": 320, "height": 700}}], indirect=True)
def test_a_picture_shows_a_cell_at_least(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(page_html(fake_run(12, LAYERS, k=10)), tmp_path / "run.html")
    for _ in range(2):
        page.get_by_label("Larger cells").click()
    for left in (0, 90):
        scroll(page, left, 90)
        page.get_by_label("Copy and save").click()
        with page.expect_download() as download:
            page.get_by_text("Save as SVG").click()
        root = ElementTree.fromstring(Path(download.value.path()).read_text(encoding="utf-8"))
        assert len([rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if rect.get("fill-opacity")]) >= 1


class TestTwoRuns:
    @pytest.fixture
    def other(self) -> FakeRun:
        return fake_run(60, LAYERS, seed=9)

    @pytest.fixture
    def page(self, visit: Visit, other: FakeRun, tmp_path: Path) -> Page:
        one = fake_run(50, LAYERS, seed=3)
        return visit.open(page_html(one, other, ("before", "after")), tmp_path / "two.html")

    def test_they_scroll_and_choose_together(self, page: Page, other: FakeRun) -> None:
        assert page.locator(".lens-pane .lens-caption").all_inner_texts() == ["before", "after"]
        scroll(page, 0, 600)
        settle(page)
        tops = page.locator("[role=grid]").evaluate_all("(grids) => grids.map((grid) => grid.scrollTop)")
        assert tops == [600, 600]
        page.locator("[role=grid]").nth(1).evaluate("(el) => el.scrollTo(0, 300)")
        settle(page)
        assert page.locator("[role=grid]").first.evaluate("(el) => el.scrollTop") == 300
        for (position, layer), cell in cells(page, grid=1).items():
            assert cell["text"] == shown(other, other.dataset.token_id.sel(site="resid_post").values[layer, position, 0])
        page.locator("[role=grid]").nth(1).locator("[role=row][aria-rowindex='20'] [role=gridcell]").nth(2).click()
        assert {text.split(" · ")[2] for text in page.locator(".lens-place").all_inner_texts()} == {"position 18"}

    @pytest.mark.parametrize(("shading", "variable"), [("entropy", "entropy"), ("kl", "kl_final")])
    def test_both_tables_have_the_legends_scale(self, visit: Visit, tmp_path: Path, shading: str, variable: str) -> None:
        runs = [fake_run(POSITIONS, LAYERS, seed=seed) for seed in (3, 9)]
        runs[0].dataset[variable] /= 3
        page = visit.open(page_html(*runs), tmp_path / "two.html")
        shade_by(page, shading)
        both = [run.dataset[variable].sel(site="resid_post").values for run in runs]
        most = max(float(values.max()) for values in both)
        assert number(page.locator(".lens-scale span").nth(1).inner_text()) == pytest.approx(most, abs=0.06)
        full = re.compile(r"rgba\(.*, ([\d.]+)\)")  # the last is how deep the shade is
        depths = [
            (float(found[1]), float(values[layer, position]) / most)
            for grid, values in enumerate(both)
            for (position, layer), cell in cells(page, grid).items()
            if (found := full.match(cell["shade"]))
        ]
        assert len(depths) > POSITIONS * LAYERS
        steepest = max(depth for depth, _ in depths)
        for depth, share in depths:
            assert depth == pytest.approx(share * steepest, abs=0.02)

    def test_their_difference_where_other_tokens_came_next(self, page: Page, other: FakeRun) -> None:
        page.get_by_role("radio", name="difference").check(force=True)
        before = fake_run(50, LAYERS, seed=3)
        for shading in ("target", "rank", "entropy"):
            shade_by(page, shading)
            for (position, _), cell in cells(page).items():
                unlike = before.output_ids[position] != other.output_ids[position]
                assert (cell["number"] == "–") == (unlike and shading != "entropy"), (shading, position)
        heads = page.locator("[role=grid]:visible .lens-rowhead .lens-target")
        for position, head in enumerate(heads.all_inner_texts()[:5]):
            own = [shown(run, run.output_ids[position]) for run in (before, other)]
            assert head == (" → ".join(own) if own[0] != own[1] else own[0])
        page.locator("[role=grid]:visible [role=row][aria-rowindex='2'] [role=gridcell]").first.click()
        told = page.locator("[id$=-active]").first.get_attribute("aria-label") or ""
        texts = [json.dumps(run.token_texts[run.output_ids[0]], ensure_ascii=False) for run in (before, other)]
        assert told.endswith(f"next is {' → '.join(texts)}")
        scroll(page, 0, 100_000)
        settle(page)
        last = page.locator("[role=grid]:visible [role=row][aria-rowindex='61'] .lens-target")
        assert last.inner_text() == shown(other, other.output_ids[59])  # which the first has not got

    def test_of_other_numbers_of_candidates_they_have_the_same_cells(self, visit: Visit, tmp_path: Path) -> None:
        runs = [fake_run(50, LAYERS, k=3, seed=3), fake_run(50, LAYERS, k=6, seed=9)]
        page = visit.open(page_html(*runs), tmp_path / "two.html")
        assert page.get_by_label("Probability over").locator("option").last.inner_text() == "top 3 or 6 only"
        for _ in range(2):
            page.get_by_label("Larger cells").click()
        grids = page.locator("[role=grid]")
        assert len(set(grids.evaluate_all("(all) => all.map((grid) => grid.scrollHeight)"))) == 1
        scroll(page, 0, 100_000)
        settle(page)
        last = page.locator("[role=row][aria-rowindex='51'] .lens-rowhead")
        assert len(set(last.evaluate_all("(all) => all.map((head) => head.getBoundingClientRect().top)"))) == 1
        page.get_by_role("radio", name="one token").check(force=True)
        settle(page)
        assert [grid.get_attribute("aria-colcount") for grid in grids.all()] == ["19", "19"]
        few, many = cells(page, 0), cells(page, 1)
        assert {column % 6 for (_, column), cell in few.items() if not cell["text"].strip()} == {3, 4, 5}
        assert all(cell["text"] for cell in many.values())
        grids.nth(1).focus()
        page.keyboard.press("Control+Home")
        for _ in range(5):
            page.keyboard.press("Shift+ArrowRight")
        grids.first.focus()
        page.evaluate("document.addEventListener('copy', (event) => (window.copied = event.clipboardData.getData('text')))")
        page.keyboard.press("Control+c")
        ids = runs[0].dataset.token_id.sel(site="attn_out").values[0, 0]
        assert page.evaluate("window.copied").split("\t") == [*(shown(runs[0], index) for index in ids), "", "", ""]

    def test_a_run_of_fewer_layers_is_in_the_chart(self, visit: Visit, tmp_path: Path) -> None:
        runs = [fake_run(POSITIONS, LAYERS, seed=3), fake_run(POSITIONS, LAYERS, seed=9)]
        runs[1].dataset = runs[1].dataset.isel(layer=slice(2, None))
        page = visit.open(page_html(*runs), tmp_path / "two.html")
        assert page.locator(".lens-followed").all_inner_texts() == [
            f"{shown(run, run.output_ids[0])}\n{which} run, next at 0"
            for run, which in zip(runs, ("first", "second"), strict=True)
        ]
        first, second = (page.locator(f".lens-panel >> nth=0 >> .lens-follow-{i} .lens-dots") for i in (0, 1))
        dots = [(dot.get_attribute("d") or "").replace("h0", "").split("M")[1:] for dot in (first, second)]
        assert [len(places) for places in dots] == [LAYERS, LAYERS - 2]
        assert [place.split()[0] for place in dots[0]][2:] == [place.split()[0] for place in dots[1]]  # at its layers

    def test_the_chosen_cell_stays_in_view_of_both(self, page: Page) -> None:
        for _ in range(2):
            page.get_by_role("radio", name="one token").check(force=True)
            settle(page)
            active = page.locator("[role=grid] .lens-active")
            assert active.count() == 2
            places = active.evaluate_all(
                """(all) => all.map((el) => {
                  const [cell, grid] = [el, el.closest("[role=grid]")].map((one) => one.getBoundingClientRect());
                  return [cell.left - grid.left, grid.right - cell.right];
                })"""
            )
            assert places[0] == places[1]
            assert min(places[0]) >= 0
            page.get_by_role("radio", name="table", exact=True).check(force=True)
            page.get_by_label("Larger cells").click()

    def test_each_says_how_it_was_made(self, visit: Visit, other: FakeRun, tmp_path: Path) -> None:
        other.options = {"steering": ["mood <b>"], "norm": "frozen"}
        page = visit.open(page_html(fake_run(50, LAYERS, seed=3), other, ("before", "after")), tmp_path / "two.html")
        captions = page.locator(".lens-pane .lens-caption")
        assert captions.all_inner_texts() == ["before", "after · mood <b> · frozen norm"]
        page.get_by_role("radio", name="difference").check(force=True)
        assert captions.first.inner_text() == "before → after · mood <b> · frozen norm"
        visit.open(page_html(other), tmp_path / "one.html")
        assert page.locator(".lens-title").inner_text().endswith("mood <b> · frozen norm")
        assert page.title() == "fake-model – mood <b> · frozen norm"

    def test_positions_that_one_lacks_are_empty(self, page: Page) -> None:
        scroll(page, 0, 100_000)
        settle(page)
        assert all(cell["text"] == "" for (row, _), cell in cells(page, grid=0).items() if row >= 50)
        assert any(cell["text"] for (row, _), cell in cells(page, grid=1).items() if row >= 50)

    def test_their_difference(self, page: Page, other: FakeRun) -> None:
        page.get_by_role("radio", name="difference").check(force=True)
        settle(page)
        assert page.locator("[role=grid]:visible").count() == 1
        before = fake_run(50, LAYERS, seed=3).dataset.sel(site="resid_post")
        after = other.dataset.sel(site="resid_post")
        for (position, layer), cell in cells(page).items():
            change = float(after.prob.values[layer, position, 0] - before.prob.values[layer, position, 0])
            assert number(cell["number"].replace("+", "")) == pytest.approx(change, abs=0.006)  # of two rounded ones
            same = before.token_id.values[layer, position, 0] == after.token_id.values[layer, position, 0]
            assert ("lens-changed" in cell["classes"]) != bool(same)
            assert ("→" in cell["text"]) != bool(same)

    def test_what_is_taken_is_of_the_run_the_reader_is_in(self, page: Page, other: FakeRun) -> None:
        data = other.dataset.sel(site="resid_post", layer=2, position=3)
        page.locator("[role=grid]").nth(1).locator("[role=row][aria-rowindex='5'] [role=gridcell][aria-colindex='4']").click()
        top = shown(other, data.token_id.values[0])
        assert copied(page) == top
        page.keyboard.press("p")
        assert page.locator(".lens-chip:not(.lens-followed) .lens-token").inner_text() == top
        head, *candidates = taken(page)
        assert head[:2] == ["token", "id"]
        assert [int(row[1]) for row in candidates] == data.token_id.values.tolist()
        assert written(picture(page))[0] == "after · resid_post"
        page.get_by_label("Find a token").press("Escape")
        assert copied(page) == top, "back in the same table"
        page.get_by_role("radio", name="difference").check(force=True)
        assert written(picture(page))[0] == "before → after · resid_post"

    def test_a_pinned_change_is_both_tokens(self, page: Page, other: FakeRun) -> None:
        page.get_by_role("radio", name="difference").check(force=True)
        settle(page)
        position, layer = next(place for place, cell in cells(page).items() if "lens-changed" in cell["classes"])
        cell = page.locator(f"[role=row][aria-rowindex='{position + 2}'] [role=gridcell][aria-colindex='{layer + 2}']").first
        cell.click()
        page.keyboard.press("p")
        before, after = (
            shown(run, run.dataset.token_id.sel(site="resid_post").values[layer, position, 0])
            for run in (fake_run(50, LAYERS, seed=3), other)
        )
        pins = page.locator(".lens-chip:not(.lens-followed) .lens-token")
        assert pins.all_inner_texts() == [before, after]
        page.get_by_role("button", name=f"Unpin {before}").click()
        cell.click()
        page.keyboard.press("p")
        assert sorted(pins.all_inner_texts()) == sorted([before, after]), "what is missing is pinned again"
        page.keyboard.press("p")
        assert pins.count() == 0

    def test_a_picture_of_their_difference_shows_both_tokens_and_frames_changes(self, page: Page) -> None:
        page.get_by_role("radio", name="difference").check(force=True)
        settle(page)
        tree = picture(page)
        there = {(row, col): cell for (row, col), cell in cells(page).items() if row < 3}
        changed = {at for at, cell in there.items() if "lens-changed" in cell["classes"]}
        assert changed
        assert changed == {at for at in boxes(tree, fill="none") if at[0] < 3}
        for row, col in changed:
            was, now = there[row, col]["text"].split("→")
            start = [text for text in written(tree) if " → " in text]
            assert any(text.startswith(was.rstrip("…")) and f"→ {now.rstrip('…')}" in text for text in start)

    def test_the_menu_stays_the_last_of_its_bar(self, page: Page) -> None:
        bar = page.locator(".lens-bar > *:visible")
        right = bar.evaluate_all("(all) => all.map((el) => el.getBoundingClientRect().right)")
        assert bar.nth(right.index(max(right))).get_by_label("Copy and save").is_visible()

    def test_a_token_is_looked_for_in_both(self, page: Page, other: FakeRun) -> None:
        first = fake_run(50, LAYERS, seed=3).dataset.token_id.sel(site="resid_post").values
        second = other.dataset.token_id.sel(site="resid_post").values

        def entered(token: int) -> dict[tuple[int, int], list[str]]:
            places: dict[tuple[int, int], list[str]] = {}
            for name, data in (("before", first), ("after", second)):
                there = (data == token).any(-1)  # [layer, position]
                for position in np.flatnonzero(there.any(0)).tolist():
                    places.setdefault((position, int(there[:, position].argmax())), []).append(name)
            return places

        # One that enters somewhere in the first alone, in the second alone, and in both.
        token = next(token for token in range(50) if len({tuple(names) for names in entered(token).values()}) == 3)
        enters = entered(token)
        page.get_by_label("Find a token").fill(f"#{token}")
        cells_with = int(sum((data == token).any(-1).sum() for data in (first, second)))
        assert f"{cells_with} cells" in page.locator(".lens-found-list").inner_text()
        for n, ((position, layer), names) in enumerate(sorted(enters.items())):
            page.keyboard.press("Enter")
            whose = "" if len(names) == 2 else f", {names[0]}"
            said = f"{n + 1} of {len(enters)} · position {position}, layer {layer}{whose}"
            assert page.locator(".lens-found-status").inner_text() == said

    def test_a_token_of_the_second_run_alone_is_found(self, visit: Visit, tmp_path: Path) -> None:
        one, other = fake_run(POSITIONS, LAYERS, seed=3), fake_run(POSITIONS, LAYERS, seed=9)
        other.token_texts[900] = " zebra"
        other.dataset["token_id"].loc[{"site": "resid_post", "layer": 2, "position": 3, "k": 4}] = 900
        page = visit.open(page_html(one, other, ("before", "after")), tmp_path / "two.html")
        page.get_by_label("Find a token").fill("zeb")
        page.keyboard.press("Enter")
        assert page.locator(".lens-found-status").inner_text() == "1 of 1 · position 3, layer 2, after"
        shade_by(page, "token:900")
        assert page.locator(".lens-legend-what").inner_text().startswith("probability of ·zebra")
        assert "·zebra is among the candidates" in page.locator(".lens-legend").inner_text()
        marks = [{at for at, cell in cells(page, grid).items() if "lens-found" in cell["classes"]} for grid in (0, 1)]
        assert marks == [set(), {(3, 2)}]
        page.get_by_role("radio", name="difference").check(force=True)
        settle(page)
        assert {at for at, cell in cells(page).items() if "lens-found" in cell["classes"]} == {(3, 2)}

    def test_coarse_numbers_are_marked(self, visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        apart = np.full((3, LAYERS, POSITIONS), 0.2)
        one, other = fake_run(POSITIONS, LAYERS, seed=3), fake_run(POSITIONS, LAYERS, seed=9)
        for about in ("", "≈ "):
            page = visit.open(page_html(one, other, apart=apart), tmp_path / f"two{about.strip()}.html")
            page.locator("[role=row][aria-rowindex='3'] [role=gridcell][aria-colindex='2']").first.click()
            for detail, run in zip(page.locator(".lens-detail").all(), (one, other), strict=True):
                names, values = (detail.locator(f".lens-facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
                facts = dict(zip(names, values, strict=True))
                cell = run.dataset.sel(site="resid_post").isel(layer=0, position=1)
                among = int(cell.target_rank) < 5
                assert facts["its probability"].startswith("≈") == (about != "" and not among)
                assert facts["rank of next"].startswith("≈") == (about != "" and int(cell.target_rank) >= 64)
                for name in ("entropy", "KL to output", *(("KL between runs",) if run is other else ())):
                    assert facts[name].startswith("≈") == bool(about), name
            monkeypatch.setattr("lens_magic.view.data.LARGE_BYTES", 0)

    def test_how_far_they_are_apart(self, visit: Visit, tmp_path: Path) -> None:
        one, other = fake_run(POSITIONS, LAYERS, seed=3), fake_run(POSITIONS, LAYERS, seed=9)
        apart = np.random.default_rng(1).uniform(0, 0.3, (3, LAYERS, POSITIONS))
        view = Explorer(one, compare=other, names=("unsteered", "steered"), apart=apart)
        packs = {"buffers": encoded(view.buffers), "other_buffers": encoded(view.other_buffers)}
        page = open_widget(visit, tmp_path, {"header": view.header, "other_header": view.other_header, **packs})
        stream = apart[2]  # [layer, position]
        shade_by(page, "apart")
        assert page.get_by_role("radio", name="difference").is_checked()
        assert page.locator(".lens-legend").inner_text().startswith("KL between the runs in nats")
        found = cells(page)
        assert len(found) == LAYERS * POSITIONS
        for (position, layer), cell in found.items():
            assert number(cell["number"]) == pytest.approx(stream[layer, position], abs=0.051)
        page.locator("[role=row][aria-rowindex='5'] [role=gridcell][aria-colindex='4']").first.click()
        facts = page.locator(".lens-detail").nth(1).locator(".lens-facts")
        told = dict(zip(facts.locator("dt").all_inner_texts(), facts.locator("dd").all_inner_texts(), strict=True))
        assert float(told["KL between runs"].removesuffix(" nats")) == pytest.approx(stream[2, 3], abs=0.0051)
        parts = np.flatnonzero(stream[:, 3] > 0.1)
        assert told["parts at"] == f"layer {parts[0]}"
        assert page.locator(".lens-detail").first.get_by_text("parts at").count() == 0
        page.get_by_role("radio", name="side by side").check(force=True)
        assert page.get_by_label("Shade by").input_value() == "prob"


def copied(page: Page) -> str:
    page.evaluate(
        "() => document.addEventListener('copy', (e) => (window.taken = e.clipboardData.getData('text/plain')), { once: true })"
    )
    page.keyboard.press("Control+c")
    return str(page.evaluate("() => window.taken"))


def taken(page: Page) -> list[list[str]]:
    """What the menu copies as a table."""
    page.evaluate("() => (navigator.clipboard.writeText = async (text) => void (window.written = text))")
    page.get_by_label("Copy and save").click()
    page.get_by_text("Copy as table").click()
    assert page.locator(".lens-said").inner_text() == "copied"
    assert page.evaluate("() => document.activeElement.tagName") == "SUMMARY"
    return [line.split("\t") for line in str(page.evaluate("() => window.written")).split("\n")]


def picture(page: Page) -> ElementTree.Element:
    """The picture that the menu saves as SVG."""
    page.get_by_label("Copy and save").click()
    with page.expect_download() as download:
        page.get_by_text("Save as SVG").click()
    return ElementTree.fromstring(Path(download.value.path()).read_bytes())


def written(tree: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in tree.iter() if element.tag.endswith("text")]


def boxes(tree: ElementTree.Element, **having: str) -> set[tuple[int, int]]:
    """Rows and columns of the cells in which a rectangle with these attributes begins, from the picture's first cell."""
    rects = [element for element in tree.iter() if element.tag.endswith("rect") and "x" in element.attrib]
    cells = [element for element in rects if "fill-opacity" in element.attrib]
    columns, rows = (sorted({float(element.attrib[name]) for element in cells}) for name in ("x", "y"))
    found = [element.attrib for element in rects if all(element.get(name) == value for name, value in having.items())]
    return {(sum(y <= float(at["y"]) for y in rows) - 1, sum(x <= float(at["x"]) for x in columns) - 1) for at in found}


def test_cells_are_copied(page: Page, run: FakeRun) -> None:
    data = run.dataset.token_id.sel(site="resid_post").values[..., 0]
    page.locator("[role=row][aria-rowindex='3'] [role=gridcell][aria-colindex='3']").click()
    assert copied(page) == shown(run, data[1, 1])
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    assert page.locator("[aria-selected=true]").count() == 4
    assert copied(page) == "\n".join("\t".join(shown(run, data[layer, p]) for layer in (1, 2)) for p in (1, 2))


def test_cells_chosen_with_the_mouse_are_copied_and_no_text(page: Page, run: FakeRun) -> None:
    data = run.dataset.token_id.sel(site="resid_post").values[..., 0]
    block = "\n".join("\t".join(shown(run, data[layer, p]) for layer in (1, 2)) for p in (1, 2))
    first = page.locator("[role=row][aria-rowindex='3'] [role=gridcell][aria-colindex='3']")
    last = page.locator("[role=row][aria-rowindex='4'] [role=gridcell][aria-colindex='4']")
    first.click()
    last.click(modifiers=["Shift"])
    assert copied(page) == block
    page.evaluate("() => getSelection().selectAllChildren(document.querySelector('.passage'))")
    first.click()
    assert copied(page) == shown(run, data[1, 1])
    first.hover()
    page.mouse.down()
    last.hover()
    page.mouse.up()
    assert copied(page) == block


def test_a_table_is_copied_with_its_numbers(page: Page, run: FakeRun) -> None:
    """Tab-separated, from the menu: a selection with its headers, a single cell as its candidates."""
    data = run.dataset.sel(site="resid_post")
    page.locator("[role=row][aria-rowindex='3'] [role=gridcell][aria-colindex='3']").click()
    head, *candidates = taken(page)
    assert head == ["token", "id", "prob", "prob_topk", "logit"]
    for at, (token, index, prob, share, logit) in enumerate(candidates):
        assert int(index) == data.token_id.values[1, 1, at]
        assert token == shown(run, int(index))
        for text, name in ((prob, "prob"), (share, "prob_topk"), (logit, "logit")):
            assert float(text) == pytest.approx(float(data[name].values[1, 1, at]), rel=0.02, abs=0.002)
    page.get_by_role("grid").focus()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    head, *rows = taken(page)
    assert len(head) == 5
    assert [len(row) for row in rows] == [5, 5]
    for position, row in zip((1, 2), rows, strict=True):
        for layer, token, value in zip((1, 2), row[1::2], row[2::2], strict=True):
            assert token == shown(run, data.token_id.values[layer, position, 0])
            assert float(value) == pytest.approx(float(data.prob.values[layer, position, 0]), rel=0.001)


def test_with_ctrl_a_click_adds_a_site(page: Page) -> None:
    def heads() -> list[str]:
        return page.locator("[role=columnheader]").all_inner_texts()

    site = page.get_by_role("radiogroup", name="Site")
    alone = len(heads())
    site.get_by_role("radio", name="mlp_out").click(modifiers=["Control"])
    settle(page)
    assert len(heads()) == 2 * alone - 1
    site.get_by_role("radio", name="resid_post").click(modifiers=["Control"])  # and takes one away
    settle(page)
    assert len(heads()) == alone
    site.get_by_role("radio", name="mlp_out").click(modifiers=["Control"])  # but not the last
    settle(page)
    assert len(heads()) == alone


def test_saved_as_a_picture(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(12, 5, hostile=True)
    page = visit.open(page_html(run), tmp_path / "run.html")
    page.locator("[role=gridcell]").first.click()
    saved = {}
    for kind in ("SVG", "PNG"):
        page.get_by_label("Copy and save").click()
        with page.expect_download() as download:
            page.get_by_text(f"Save as {kind}").click()
        saved[kind] = Path(download.value.path()).read_bytes()
        assert page.locator(".lens-said").inner_text() == f"saved as lens.{kind.lower()}"
    assert saved["PNG"][:8] == b"\x89PNG\r\n\x1a\n"
    assert len(saved["PNG"]) > 5000
    tree = ElementTree.fromstring(saved["SVG"])
    assert {element.tag.split("}")[1] for element in tree.iter()} == {"svg", "style", "rect", "text"}
    texts = {element.text for element in tree.iter() if element.tag.endswith("text")}
    top = shown(run, run.dataset.token_id.sel(site="resid_post").values[4, 0, 0])
    assert any(text and text.rstrip("…") and top.startswith(text.rstrip("…")) for text in texts)


def test_a_picture_has_the_marks_of_the_screen(page: Page, run: FakeRun) -> None:
    tree = picture(page)
    there = cells(page)
    assert written(tree)[0] == "fake-model · resid_post"
    for mark, having in (("lens-hit", {"height": "2"}), ("lens-settles", {"width": "3"})):
        marked = {at for at, cell in there.items() if mark in cell["classes"]}
        assert marked
        assert boxes(tree, **having) == marked


@pytest.mark.parametrize("width", [400, 700, 1000, 1400, 2000])
@pytest.mark.parametrize("two", [False, True])
def test_nothing_sticks_out(visit: Visit, run: FakeRun, tmp_path: Path, width: int, two: bool) -> None:
    page = visit.open(page_html(run, run if two else None), tmp_path / "run.html")
    page.set_viewport_size({"width": width, "height": 900})
    for mode in ("table", "one token"):
        page.get_by_role("radio", name=mode).check(force=True)
        settle(page)
        out = page.evaluate(
            """() => {
              const root = document.querySelector(".lens-root").getBoundingClientRect();
              const names = ["segments", "tools", "menu", "field", "input", "scroll", "detail", "panel", "chip", "legend-what"];
              const parts = [...document.querySelectorAll(names.map((name) => `.lens-${name}`).join())];
              return parts.filter((el) => el.offsetParent && (el.getBoundingClientRect().right > root.right + 0.5 ||
                el.getBoundingClientRect().left < root.left - 0.5)).map((el) => el.className);
            }"""
        )
        assert out == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_names_and_counts_for_those_who_listen(page: Page, run: FakeRun) -> None:
    grid = page.get_by_role("grid")
    assert grid.get_attribute("aria-rowcount") == str(POSITIONS + 1)
    assert grid.get_attribute("aria-colcount") == str(LAYERS + 1)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, summary, [role=grid], svg, canvas")].filter((el) => {
          const named = el.getAttribute("aria-label") || el.textContent.trim() || el.labels?.[0]?.textContent.trim();
          return !named && !el.closest("[aria-label]");
        }).map((el) => el.outerHTML)"""
    )
    assert nameless == []
    active = page.locator(f"#{grid.get_attribute('aria-activedescendant')}")
    label = active.get_attribute("aria-label") or ""
    assert shown(run, run.dataset.token_id.sel(site="resid_post").values[-1, 0, 0]) in label
    assert f"layer {LAYERS - 1}, position 0" in label
    roles: Any = page.evaluate(
        """() => [...document.querySelectorAll("[role=row]")].every(
          (row) => +row.ariaRowIndex >= 1 && [...row.children].every((cell) => +cell.ariaColIndex >= 1))"""
    )
    assert roles is True


@pytest.mark.parametrize("visit", [{"reduced_motion": "reduce"}], indirect=True)
def test_nothing_moves_for_those_who_ask_for_it(page: Page) -> None:
    assert page.evaluate(
        "() => [...document.querySelectorAll('.lens-root *')].every((el) => getComputedStyle(el).transitionDuration === '0s')"
    )
