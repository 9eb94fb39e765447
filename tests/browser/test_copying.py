"""Copying cells to a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_run import fake_run

from lens_magic.view import page_html

if TYPE_CHECKING:
    from conftest import Visit
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def pasted(page: Page) -> list[list[str]]:
    """The table as spreadsheets read it: a field that begins with a quotation mark goes on to the next one."""
    page.evaluate("() => (navigator.clipboard.writeText = async (text) => void (window.written = text))")
    page.get_by_role("grid").focus()
    page.keyboard.press("Control+Home")
    page.keyboard.press("Control+Shift+End")
    page.get_by_label("Copy and save").click()
    page.get_by_text("Copy as table").click()
    page.wait_for_function("() => window.written")
    return list(csv.reader(str(page.evaluate("() => window.written")).splitlines(), delimiter="\t"))


def test_nothing_is_computed(visit: Visit, tmp_path: Path) -> None:
    """A token that looks like a formula is text; one that is only its first character is none, nor is a row's label."""
    run = fake_run(6, 5, prompt_positions=2)
    texts = ["=1+1", "+cmd", "-2+3", "@sum", "=", "+", "-", "a=b"]
    run.token_texts.update(enumerate(texts))
    run.dataset["token_id"][...] = run.dataset["token_id"] % len(texts)
    _, *rows = pasted(visit.open(page_html(run), tmp_path / "run.html"))
    fields = {field for row in rows for field in row[1::2]}
    assert fields == {"'=1+1", "'+cmd", "'-2+3", "'@sum", "=", "+", "-", "a=b"}
    assert {row[0][0] for row in rows} <= set("−012345")


def test_numbers_are_numbers_and_quotation_marks_end_nothing(visit: Visit, tmp_path: Path) -> None:
    run = fake_run(6, 5)
    run.token_texts.update(enumerate(['"', '"The', 'a"b']))
    run.dataset["token_id"][...] = run.dataset["token_id"] % 3
    run.dataset["prob"].values[..., 0] = [0.99951, 0.0004, 0.5, 0.997, 3e-6, 0.25]  # by position
    head, *rows = pasted(visit.open(page_html(run), tmp_path / "run.html"))
    assert len(rows) == 6
    data = run.dataset.sel(site="resid_post")
    for position, row in enumerate(rows):
        assert len(row) == len(head) == 11
        assert row[1::2] == [run.token_texts[int(i)] for i in data.token_id.values[:, position, 0]]
        assert [float(value) for value in row[2::2]] == pytest.approx(data.prob.values[:, position, 0], rel=0.001)
