"""A run as text: columns align in a terminal of any width, and cut tokens are marked."""

from __future__ import annotations

import io
import os
import shutil
import sys

import pytest
from fake_run import fake_run, without_numbers

from lens_magic.view.terminal import table_text
from lens_magic.view.text import fitted


def test_tokens_take_the_columns_they_are_given() -> None:
    assert fitted("·Massachusetts", 9) == "·Massach…"
    assert fitted("·Cambrid", 9) == "·Cambrid "
    assert fitted("漢字", 6) == "漢字  "  # two columns each
    assert fitted("漢字漢字", 6) == "漢字… "  # a third would take the ellipsis' place
    assert fitted("a\u0301\u0302", 3, right=True) == "  a\u0301\u0302"  # and none


@pytest.mark.parametrize(("width", "layers"), [(20, [0, 11]), (80, [0, 4, 7, 11]), (200, [0, 2, 3, 5, 6, 8, 9, 11])])
def test_a_terminal_is_not_overrun(monkeypatch: pytest.MonkeyPatch, width: int, layers: list[int]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))
    _, header, rule, *rows = table_text(fake_run(9, 12)).splitlines()
    assert [int(word) for word in header.split() if word.isdigit()] == layers
    assert len(rule) <= max(width, 50)
    assert all(len(row) <= len(rule) for row in rows)


def test_a_cell_without_numbers_has_a_dash() -> None:
    *_, above, row = table_text(without_numbers(fake_run(4, 3), layer=1, position=3)).splitlines()
    first, middle, last = (place for place, char in enumerate(above) if char == "%")
    assert [row[place] for place in (first, middle, last)] == ["%", "–", "%"]


def test_no_probability_is_rounded_up_to_certainty() -> None:
    run = fake_run(3, 1, ["resid_post"])
    run.dataset["prob"].values[0, 0, :, 0] = [0.994, 0.995, 1]
    *_, below, above, most = table_text(run).splitlines()
    assert [row.split()[-1] for row in (below, above, most)] == ["99%", ">99%", ">99%"]


def test_a_log_has_all_columns() -> None:
    header = table_text(fake_run(9, 8)).splitlines()[1]
    assert header.count("layer") == 8
