"""For readers with forced colours, with a keyboard or a screen reader, and of scripts from right to left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_run import fake_run
from reading import settle

from lens_magic.steer.compare import Side, SteeredText
from lens_magic.view import page_html, table_html

if TYPE_CHECKING:
    from conftest import Visit

pytestmark = pytest.mark.browser

AXE = Path(__file__).parents[1] / "js" / "node_modules" / "axe-core" / "axe.min.js"
STRONG = (2.0, -2.0, 4.0, -4.0)


def both(tokens: list[str]) -> str:
    """Both texts of a steered generation, alike but for their last tokens."""
    ids = list(range(len(tokens)))
    changed = [Side("", ids[:-2] + ids[-1:], (0.0,) * (len(ids) - 1), (STRONG * 9)[1 : len(ids)])]
    side = Side("", ids[:-1], (0.0,) * (len(ids) - 1), (STRONG * 9)[: len(ids) - 1])
    return SteeredText("", side, *changed, dict(enumerate(tokens)), ("mood add α=1",))._repr_html_()


@pytest.mark.parametrize("visit", [{"forced_colors": "active", "color_scheme": "dark"}], indirect=True)
def test_marked_text_is_seen_on_a_dark_page_in_forced_colours(visit: Visit, tmp_path: Path) -> None:
    """There a <mark> has black text, and hardly anything of a translucent shade behind it."""
    for html in (page_html(fake_run(9, 6)), f'<meta name="color-scheme" content="dark">{both(["a", "b", "c", "d"])}'):
        page = visit.open(html, tmp_path / "page.html")
        colours = page.locator("mark").evaluate_all(
            "(all) => all.map((el) => [getComputedStyle(el).color, getComputedStyle(el.parentElement).color])"
        )
        assert colours
        assert all(own == around for own, around in colours)
    assert (
        page.locator(".lens-text span").evaluate_all(
            "(all) => new Set(all.map((el) => getComputedStyle(el).backgroundColor)).size"
        )
        > 2
    )


@pytest.mark.parametrize("visit", [{"forced_colors": "active"}], indirect=True)
def test_lines_are_told_apart_in_forced_colours(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(page_html(fake_run(9, 6)), tmp_path / "page.html")
    for at in range(3):
        page.locator(".lens-candidate").nth(at).click()
    for line in range(3):
        of = f".lens-line-{line}"
        swatch = page.locator(f"i{of}").evaluate("(el) => getComputedStyle(el).borderTopColor")
        assert swatch == page.locator(f"g{of} path").first.evaluate("(el) => getComputedStyle(el).stroke")


def test_an_answer_is_told_from_its_prompt_by_more_than_colour(visit: Visit, tmp_path: Path) -> None:
    bar = "(el) => parseFloat(getComputedStyle(el).borderInlineStartWidth)"
    run = fake_run(9, 6)
    run.prompt, run.text = "Where?", "\n\nThere."
    mark = visit.open(page_html(run), tmp_path / "page.html").locator("mark")
    assert mark.evaluate(bar) >= 2
    assert mark.inner_text() == "There."
    assert mark.evaluate("(el) => el.getClientRects().length") == 1, "in the line of its first word"
    alone = page_html(fake_run(0, 6, prompt_positions=9))
    assert visit.open(alone, tmp_path / "alone.html").locator("mark").evaluate(bar) == 0


def test_the_underline_of_a_stored_table_is_as_strong_as_its_text(visit: Visit, tmp_path: Path) -> None:
    """Any other colour is weak on some of the shades."""
    page = visit.open(table_html(fake_run(9, 6)), tmp_path / "table.html")
    assert page.locator("td u").first.evaluate(
        "(el) => getComputedStyle(el).textDecorationColor === getComputedStyle(el).color"
    )


def test_tokens_of_one_word_are_in_its_order(visit: Visit, tmp_path: Path) -> None:
    """Whatever the direction of the paragraph, and each line has its own."""
    hebrew = [" של", "ום", " tech", "nology", " 20", "24", "\n"]
    page = visit.open(both([*hebrew, " The", " word", " של", "ום", "x", "y"]), tmp_path / "texts.html")
    tokens = page.locator(".lens-text").first.locator("span, mark")
    left: dict[str, list[float]] = {}
    for token in tokens.all():
        box = token.bounding_box()
        assert box is not None
        left.setdefault(token.inner_text(), []).append(box["x"])
    assert left["tech"] < left["nology"]
    assert left["20"] < left["24"]
    assert [at > after for at, after in zip(left["של"], left["ום"], strict=True)] == [True, True]
    assert left["של"][0] > left["tech"][0], "a line of Hebrew"
    assert left["The"] < left["word"] < left["של"][1:], "and one of English"


# Where each character of the elements' text is drawn.
CHARACTERS = """(all) => all.map((el) => {
  const walk = document.createTreeWalker(el, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walk.nextNode()) [...walk.currentNode.data].forEach((character, at) => {
    const range = document.createRange();
    range.setStart(walk.currentNode, at);
    range.setEnd(walk.currentNode, at + 1);
    found.push([character, range.getBoundingClientRect().left]);
  });
  return found;
})"""


def test_a_token_from_right_to_left_is_so_everywhere(visit: Visit, tmp_path: Path) -> None:
    """Its space is at its right, and between two tokens the arrow points from the first to the second."""
    run, other = fake_run(9, 6, seed=3), fake_run(9, 6, seed=4)
    for one, text in ((run, " שלום"), (other, " עולם")):
        one.token_texts = dict.fromkeys(one.token_texts, text)
    other.dataset["token_id"] += 100
    other.token_texts = {index + 100: text for index, text in other.token_texts.items()}
    other.prompt_ids, other.output_ids = ([index + 100 for index in ids] for ids in (other.prompt_ids, other.output_ids))
    page = visit.open(page_html(run, other), tmp_path / "page.html")

    def drawn(where: str) -> list[list[tuple[str, float]]]:
        found = page.locator(f"{where}:visible").evaluate_all(CHARACTERS)
        assert found, where
        return found  # type: ignore[no-any-return]

    for where in (".lens-cell", ".lens-target", ".lens-flow .lens-token", ".lens-candidate", ".lens-more b"):
        for characters in drawn(where)[:30]:
            assert characters[0][0] == "·"
            assert characters[0][1] > characters[1][1] > characters[-1][1], where
    page.get_by_role("radio", name="difference").check(force=True)
    settle(page)
    for where in (".lens-cell", ".lens-target"):
        for characters in drawn(where)[:30]:
            at = {character: left for character, left in characters if character in "ש→ע"}
            assert at["ש"] < at["→"] < at["ע"], where
            assert [character for character, _ in characters].count("·") == 2


# Hosts with the weakest text there is, which what a notebook stores inherits; see THEMES in test_live.py.
HOST = """<!DOCTYPE html><html lang="en"><title>notebook</title><style>body {{ background: {back}; color: {text};
--vscode-editor-background: {back}; --vscode-editor-foreground: {text} }}</style><main>{html}</main>"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_that_axe_finds(visit: Visit, tmp_path: Path, scheme: str) -> None:
    """Names, roles, contrasts and what the keyboard reaches: rules of WCAG 2.2, levels A and AA, that a program can check."""
    if not AXE.exists():
        pytest.skip("there is no axe-core; tools/node.sh gets it")
    run, other = fake_run(60, 12, prompt_positions=300), fake_run(60, 12, seed=4)
    back, text = {"light": ("#fff", "#3b3b3b"), "dark": ("#1f1f1f", "#ccc")}[scheme]
    stored = HOST.format(back=back, text=text, html=table_html(run) + both([" a", " b", " c", " d", " e", " f"]))
    visit.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    for name, html in {"page": page_html(run), "two": page_html(run, other), "stored": stored}.items():
        page = visit.open(html, tmp_path / f"{name}.html")
        if name != "stored":
            page.locator(".lens-candidate").nth(1).click()
            page.get_by_label("Find a token").fill("the")
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate(
            """async (whole) => {
              const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];
              const rules = { region: { enabled: true }, "label-content-name-mismatch": { enabled: true } };
              rules["page-has-heading-one"] = { enabled: whole };
              const { violations, passes } = await axe.run(document, { runOnly: tags, rules });
              const found = violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => [id, html]));
              // Of a layer that is too small to press, the cell is in the table.
              return [found.filter(([id, html]) => id !== "target-size" || !html.includes("lens-link")), passes.length];
            }""",
            name != "stored",
        )
        assert found[0] == [], name
        assert found[1] > 8
