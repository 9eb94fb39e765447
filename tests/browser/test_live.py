"""The widget in the browser, with a stand-in for its model: a growing run, several views on one page, themes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_run import FakeRun, encoded, fake_run
from reading import cells, check, scroll, settle

from lens_magic.view import LiveView, bundle
from lens_magic.view.data import pack, path

if TYPE_CHECKING:
    from conftest import Visit
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

# What anywidget hands to `render`, as far as it is used; `sent` is what the browser says to the kernel.
MODEL = """(state) => {
  const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const all = (encoded) => Object.fromEntries(Object.entries(encoded).map(([name, text]) => [name, bytes(text)]));
  for (const name of ["buffers", "other_buffers"]) state[name] = all(state[name] ?? {});
  const handlers = {};
  globalThis.sent = [];
  globalThis.model = {
    get: (name) => state[name],
    set: (name, value) => (state[name] = value),
    save_changes() {},
    send: (content) => sent.push(content),
    on: (event, handler) => (handlers[event] = handler),
    off: (event) => delete handlers[event],
  };
  globalThis.hear = (message, buffers) => handlers["msg:custom"](message, buffers.map(bytes));
  globalThis.become = (changes) => {
    for (const [name, value] of Object.entries(changes)) state[name] = name.endsWith("buffers") ? all(value) : value;
    for (const name of Object.keys(changes)) handlers[`change:${name}`]?.();
  };
  globalThis.leave = lensRender({ model, el: document.getElementById("out") });
}"""


def open_widget(visit: Visit, folder: Path, state: dict[str, Any], attributes: str = "") -> Page:
    script = bundle.script().replace("export default { render };", "globalThis.lensRender = render;")
    html = f"<!DOCTYPE html><html><style>{bundle.style()}</style><body {attributes}><div id=out></div>"
    page = visit.open(html, folder / "widget.html")
    page.add_script_tag(type="module", content=script)
    page.wait_for_function("() => globalThis.lensRender")
    page.evaluate(MODEL, {"selected": {}, "fallback": "x", "other_header": {}, "live": False, **state})
    return page


class Kernel:
    """A view of a run that is made three positions at a time, and what it says to the browser."""

    def __init__(self, run: FakeRun, **options: Any) -> None:
        data = run.dataset
        self.run, self.said = run, []
        self.view = LiveView(run.model, data.site.values.tolist(), data.layer.values.tolist(), data.sizes["k"], **options)
        self.view.send = lambda content, buffers=None: self.said.append((content, buffers or []))
        self.next = 0

    def state(self) -> dict[str, Any]:
        return {"header": self.view.header, "buffers": encoded(self.view.buffers), "live": True}

    def grow(self, text: str = "") -> None:
        data, part = self.run.dataset, slice(self.next, self.next + 3)
        self.next += 3
        positions = data.position.values[part].tolist()
        inputs, targets = path(self.run.prompt_ids, self.run.output_ids, positions)
        variables = {str(name): data[name].isel(position=part).values for name in data.data_vars}
        self.view.say(text)
        self.view.append(positions, variables, inputs.tolist(), targets.tolist(), self.run.token_texts)

    def tell(self, page: Page, skip: int = 0) -> None:
        """Delivers what has been said, but for the first few messages."""
        for message, buffers in self.said[skip:]:
            page.evaluate(
                "([message, buffers]) => hear(message, buffers)", [message, [base64.b64encode(b).decode() for b in buffers]]
            )
        self.said.clear()

    def hear(self, page: Page) -> None:
        """What the browser has said arrives in the kernel."""
        for content in page.evaluate("() => sent.splice(0)"):
            self.view._heard(self.view, content, [])


def test_rows_and_text_appear_as_they_are_made(visit: Visit, tmp_path: Path) -> None:
    kernel = Kernel(fake_run(30, 8, hostile=True))
    page = open_widget(visit, tmp_path, kernel.state())
    assert page.get_by_role("button", name="Stop").is_visible()
    assert page.get_by_role("grid").count() == 0
    for n in range(1, 11):
        kernel.grow("<b>x</b> ")
        kernel.tell(page)
        settle(page)
        assert page.locator(".lens-live-text").inner_text().split() == ["<b>x</b>"] * n
        assert page.get_by_role("grid").get_attribute("aria-rowcount") == str(3 * n + 1)
        assert f"{3 * n} positions × 8 layers" in page.locator(".lens-title").inner_text()
        assert f"{3 * n} rows" in page.locator(".lens-live").inner_text()
        assert page.locator(".lens-root [role=status]").all_inner_texts() == [""] * 3, "nothing is read out with every row"
    check(page, kernel.run, "resid_post")
    # A reader who has not scrolled away sees the newest row.
    assert max(row for row, _ in cells(page)) == 29


def grown_while_read_at(left: int, top: int, layers: int, visit: Visit, folder: Path) -> Page:
    """A run of 60 positions that has grown by three after a reader had scrolled."""
    kernel = Kernel(fake_run(90, layers))
    page = open_widget(visit, folder, kernel.state())
    for _ in range(20):
        kernel.grow()
    kernel.tell(page)
    scroll(page, left, top)
    kernel.grow()
    kernel.tell(page)
    settle(page)
    return page


def test_a_reader_elsewhere_stays_there(visit: Visit, tmp_path: Path) -> None:
    page = grown_while_read_at(0, 300, 8, visit, tmp_path)
    assert page.locator("[role=grid]").evaluate("(el) => el.scrollTop") == 300


def test_what_was_missed_is_asked_for(visit: Visit, tmp_path: Path) -> None:
    """Messages sent before the browser listens, and one lost on the way."""
    kernel = Kernel(fake_run(15, 8))
    kernel.grow("a")
    kernel.said.clear()
    page = open_widget(visit, tmp_path, kernel.state())
    kernel.hear(page)
    kernel.tell(page)
    assert page.get_by_role("grid").get_attribute("aria-rowcount") == "4"
    kernel.grow("b")
    kernel.grow("c")
    kernel.tell(page, skip=1)
    assert page.get_by_role("grid").get_attribute("aria-rowcount") == "4"
    kernel.hear(page)
    kernel.tell(page)
    assert page.get_by_role("grid").get_attribute("aria-rowcount") == "10"
    assert page.locator(".lens-live-text").inner_text() == "abc"
    check(page, kernel.run, "resid_post")


def test_stop_reaches_the_kernel_once(visit: Visit, tmp_path: Path) -> None:
    stops: list[int] = []
    kernel = Kernel(fake_run(6, 4), on_stop=lambda: stops.append(1))
    page = open_widget(visit, tmp_path, kernel.state())
    kernel.grow()
    kernel.tell(page)
    page.get_by_role("button", name="Stop").click()
    assert page.locator(".lens-live-state").inner_text() == "stopping …"
    assert page.get_by_role("button", name="Stop").is_disabled()
    kernel.hear(page)
    assert stops == [1]
    assert kernel.view.stopped


def test_who_stops_it_by_keyboard_is_in_the_table_afterwards(visit: Visit, tmp_path: Path) -> None:
    kernel = Kernel(fake_run(60, 8))
    page = open_widget(visit, tmp_path, kernel.state())
    for _ in range(20):
        kernel.grow()
    kernel.tell(page)
    page.get_by_role("button", name="Stop").focus()
    page.keyboard.press("Enter")
    kernel.view.finish(kernel.run)
    state = {"header": kernel.view.header, "buffers": encoded(kernel.view.buffers), "live": kernel.view.live}
    page.evaluate("(changes) => become(changes)", state)
    settle(page)
    assert page.evaluate("() => document.activeElement.role") == "grid"
    page.keyboard.press("ArrowDown")
    assert page.locator(".lens-place").inner_text().endswith("position 1")


def test_a_finished_run_is_an_ordinary_one_in_the_same_place(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(60, 8)
    kernel = Kernel(run)
    page = open_widget(visit, tmp_path, kernel.state())
    for _ in range(20):
        kernel.grow()
    kernel.tell(page)
    page.get_by_role("radio", name="mlp_out").check(force=True)
    page.get_by_label("Shade by").select_option("entropy")
    page.locator("[role=gridcell]").nth(30).click()
    before = page.locator(".lens-place").inner_text()
    scroll(page, 0, 400)
    kernel.view.finish(run)
    state = {"header": kernel.view.header, "buffers": encoded(kernel.view.buffers), "live": kernel.view.live}
    page.evaluate("(changes) => become(changes)", state)
    settle(page)
    assert page.get_by_role("button", name="Stop").count() == 0
    assert page.locator(".lens-place").inner_text() == before
    assert page.locator(".lens-legend-what").inner_text() == "entropy in nats"
    check(page, run, "mlp_out")
    assert page.evaluate("() => [document.activeElement.role, document.activeElement.scrollTop]") == ["grid", 400]
    page.evaluate("() => leave()")
    assert page.locator(".lens-root").count() == 0


def test_to_a_reader_who_followed_it_a_finished_run_opens_at_its_start(visit: Visit, tmp_path: Path) -> None:
    """Where the newest row happened to be in view is no place that anyone has chosen."""
    kernel = Kernel(fake_run(60, 8))
    page = open_widget(visit, tmp_path, kernel.state())
    for _ in range(20):
        kernel.grow()
    kernel.tell(page)
    grid = page.locator("[role=grid]")
    settle(page)
    assert grid.evaluate("(el) => el.scrollTop") > 0
    kernel.view.finish(kernel.run)
    state = {"header": kernel.view.header, "buffers": encoded(kernel.view.buffers), "live": kernel.view.live}
    page.evaluate("(changes) => become(changes)", state)
    settle(page)
    assert grid.evaluate("(el) => el.scrollTop") == 0
    assert min(row for row, _ in cells(page)) == 0


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("pressed", [False, True])
def test_of_a_run_that_fails_what_there_is_stays(visit: Visit, tmp_path: Path, rows: int, pressed: bool) -> None:
    kernel = Kernel(fake_run(6, 8))
    page = open_widget(visit, tmp_path, kernel.state())
    kernel.view.say("so far")
    if rows:
        kernel.grow()
    kernel.tell(page)
    if pressed:
        page.get_by_role("button", name="Stop").click()
    kernel.view.end()
    kernel.tell(page)
    assert page.get_by_role("button", name="Stop").count() == 0
    assert page.locator(".lens-live-state").inner_text() == "not finished"
    assert page.locator(".lens-live-text").inner_text() == "so far"
    assert page.get_by_role("grid").count() == (1 if rows else 0)


def test_a_run_finished_without_a_row_has_no_stop(visit: Visit, tmp_path: Path) -> None:
    kernel = Kernel(fake_run(0, 8))
    page = open_widget(visit, tmp_path, kernel.state())
    before = kernel.view.buffers
    kernel.view.finish(kernel.run)
    assert kernel.view.buffers == before  # of which no change is told
    page.evaluate("(changes) => become(changes)", {"header": kernel.view.header, "live": kernel.view.live})
    assert page.get_by_role("button", name="Stop").count() == 0
    assert "no positions" in page.locator(".lens-empty").inner_text()


def test_two_views_have_nothing_in_common(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(20, 6)
    packed = pack(run)
    page = open_widget(visit, tmp_path, {"header": packed.header, "buffers": encoded(packed.to_bytes())})
    page.evaluate(
        """() => {
          const second = document.createElement("div");
          document.body.append(second);
          lensRender({ model, el: second });
        }"""
    )
    settle(page)
    ids = page.locator(".lens-root [id]").evaluate_all("(elements) => elements.map((element) => element.id)")
    assert len(ids) == len(set(ids)) >= 4
    page.get_by_role("radio", name="attn_out").first.check(force=True)
    page.get_by_label("Shade by").first.select_option("entropy")
    chosen = page.locator("input[type=radio][value=resid_post]:checked").count()
    assert chosen == 1
    assert page.locator(".lens-legend-what").all_inner_texts()[1].startswith("probability of the top token")


# Each theme's own background, text and lines, as JupyterLab 4 and VS Code set them.
JUPYTER_LIGHT = "--jp-layout-color0:#fff;--jp-content-font-color1:rgba(0,0,0,.87);--jp-content-font-color2:rgba(0,0,0,.54)"
JUPYTER_DARK = "--jp-layout-color0:#111;--jp-content-font-color1:#fff;--jp-content-font-color2:rgba(255,255,255,.7)"
CODE_LIGHT = "--vscode-editor-background:#fff;--vscode-editor-foreground:#3b3b3b;--vscode-descriptionForeground:#3b3b3b"
CODE_DARK = "--vscode-editor-background:#1f1f1f;--vscode-editor-foreground:#ccc;--vscode-descriptionForeground:#9d9d9d"
CODE_CONTRAST = "--vscode-editor-background:#000;--vscode-editor-foreground:#fff;--vscode-contrastBorder:#6fc3df"
THEMES = {
    "alone": ("", "", "light"),
    "alone-dark": ("", "", "dark"),
    "jupyterlab-light": ('data-jp-theme-light="true" data-jp-theme-name="JupyterLab Light"', JUPYTER_LIGHT, "dark"),
    "jupyterlab-dark": ('data-jp-theme-light="false" data-jp-theme-name="JupyterLab Dark"', JUPYTER_DARK, "light"),
    "jupyterlab-contrast": (
        'data-jp-theme-light="false" data-jp-theme-name="JupyterLab Dark High Contrast"',
        JUPYTER_DARK,
        "light",
    ),
    "vscode-light": ('class="vscode-light"', CODE_LIGHT, "dark"),
    "vscode-dark": ('class="vscode-dark"', CODE_DARK, "light"),
    "vscode-contrast": ('class="vscode-high-contrast"', CODE_CONTRAST, "light"),
}

# Contrast of text over the deepest shade of every ramp, and of the other texts over the background (WCAG 2.2, 1.4.3).
CONTRAST = """() => {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colours, opacity = 1) => {
    probe.clearRect(0, 0, 1, 1);
    colours.forEach((colour, i) => {
      probe.globalAlpha = i === colours.length - 1 ? opacity : 1;
      probe.fillStyle = colour;
      probe.fillRect(0, 0, 1, 1);
    });
    return [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const ratio = (back, { color, opacity }) => {
    const [a, b] = [light(over(back)), light(over([...back, color], Number(opacity)))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const root = document.querySelector(".lens-root");
  const cell = document.querySelector(".lens-cell");
  const style = getComputedStyle(root);
  const found = {};
  for (const ramp of ["sure", "unsure", "more", "less"]) {
    cell.style.backgroundColor = `rgb(var(--lens-${ramp}) / var(--lens-depth-${ramp}))`;
    const shaded = [style.backgroundColor, getComputedStyle(cell).backgroundColor];
    found[ramp] = ratio(shaded, getComputedStyle(cell));
    found[`number on ${ramp}`] = ratio(shaded, getComputedStyle(cell, "::after"));
  }
  const lit = document.querySelector(".lens-rowhead.lens-lit");
  const weak = lit.appendChild(document.createElement("span")); // the token read, as larger cells have it
  weak.className = "lens-read";
  const lamp = `rgb(${style.getPropertyValue("--lens-sure")} / 0.14)`;
  found.lit = ratio([style.backgroundColor, lamp], getComputedStyle(weak));
  for (const part of [".lens-legend", ".lens-place", ".lens-label", ".lens-colhead", ".lens-caption, .lens-target"]) {
    found[part] = ratio([style.backgroundColor], getComputedStyle(document.querySelector(part)));
  }
  for (let i = 0; i < 6; i++) {
    const line = document.createElement("i");
    line.style.color = `var(--lens-s${i})`;
    root.append(line);
    found[`line ${i}`] = ratio([style.backgroundColor], getComputedStyle(line));
  }
  return found;
}"""


@pytest.mark.parametrize("name", THEMES)
def test_contrast(visit: Visit, tmp_path: Path, name: str) -> None:
    attributes, variables, scheme = THEMES[name]
    packed = pack(fake_run(12, 6))
    state = {"header": packed.header, "buffers": encoded(packed.to_bytes())}
    page = open_widget(visit, tmp_path, state, f'{attributes} style="{variables}"')
    page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
    settle(page)
    found = page.evaluate(CONTRAST)
    weak = {part: round(ratio, 2) for part, ratio in found.items() if ratio < (3 if part.startswith("line") else 4.5)}
    assert not weak


def distance(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5


# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("blindness", BLINDNESS)
def test_more_and_less_are_told_apart(visit: Visit, tmp_path: Path, scheme: Any, blindness: str) -> None:
    packed = pack(fake_run(3, 2))
    page = open_widget(visit, tmp_path, {"header": packed.header, "buffers": encoded(packed.to_bytes())})
    page.emulate_media(color_scheme=scheme)
    colours = page.evaluate(
        """() => {
          const style = getComputedStyle(document.querySelector(".lens-root"));
          const read = (name) => style.getPropertyValue(`--lens-${name}`).trim().split(" ").map(Number);
          return { more: read("more"), less: read("less"), unsure: read("unsure") };
        }"""
    )

    def seen(colour: list[float]) -> list[float]:
        linear = [(c / 255) ** 2.2 for c in colour]
        mixed = [sum(w * c for w, c in zip(row, linear, strict=True)) for row in BLINDNESS[blindness]]
        return [255 * min(1.0, max(0.0, c)) ** (1 / 2.2) for c in mixed]

    assert distance(seen(colours["more"]), seen(colours["less"])) > 100
