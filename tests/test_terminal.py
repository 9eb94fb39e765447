"""A run as text: columns align in a terminal of any width, and cut tokens are marked."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import pytest
from fake_run import fake_run, without_numbers

from lens_magic.lens.kept import KeptRuns
from lens_magic.ranks.status import Status
from lens_magic.view.terminal import table_text
from lens_magic.view.text import fitted, visible


def test_tokens_take_the_columns_they_are_given() -> None:
    assert fitted("·Massachusetts", 9) == "·Massach…"
    assert fitted("·Cambrid", 9) == "·Cambrid "
    assert fitted("漢字", 6) == "漢字  "  # two columns each
    assert fitted("漢字漢字", 6) == "漢字… "  # a third would take the ellipsis' place
    assert fitted("a\u0301\u0302", 3, right=True) == "  a\u0301\u0302"  # and none
    assert fitted("·שלום", 7) == "\u2068·שלום\u2069  "  # or terminals would exchange it with the next such column


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


@pytest.mark.parametrize(
    ("generated", "said", "above", "below", "mark"),
    [
        (20, ", positions −4 to 11", ["… 26 earlier tokens"], ["… and 8 more tokens"], 5),
        (13, ", positions −4 to 11", ["… 26 earlier tokens"], ["… and 1 more token"], 5),
        (3, ", positions −13 to 2", ["… 17 earlier tokens"], [], 14),
        (0, ", positions −30 to −15", [], ["… and 14 more tokens"], None),
    ],
)
def test_the_answer_of_a_long_prompt_is_shown(
    generated: int, said: str, above: list[str], below: list[str], mark: int | None
) -> None:
    run = fake_run(generated, 3, prompt_positions=30)
    title, _, rule, *lines = table_text(run).splitlines()
    assert title.partition(" by layer")[2] == said
    assert [line for line in lines if line.startswith("…")] == [*above, *below]
    assert [at for at, line in enumerate(lines) if line == "┄" * len(rule)] == ([] if mark is None else [mark])
    sequence, first = run.prompt_ids + run.output_ids, int(said.split()[2].replace("−", "-"))
    shown = [line.partition(" │")[0] for line in lines if "│" in line]
    start = len(run.prompt_ids) + first
    assert shown == [fitted(visible(run.token_texts[index]), 12, right=True) for index in sequence[start : start + 16]]


def test_a_whole_run_is_marked_where_generation_begins() -> None:
    title, _, rule, *lines = table_text(fake_run(3, 3, prompt_positions=2)).splitlines()
    assert title.endswith("by layer")
    assert [at for at, line in enumerate(lines) if line == "┄" * len(rule)] == [2]
    assert len(lines) == 6


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


def test_bytes_are_told_in_the_same_units_everywhere() -> None:
    ranks = [{"rank": 0, "pid": 1, "device": "cpu", "memory": 1_500_000_000, "free": 12_300_000_000}]
    assert repr(Status(ranks, None)).splitlines()[2].split()[3:] == ["1.5", "GB", "12.3", "GB"]
    assert repr(KeptRuns([(Path("run.nc"), 45_600)])).endswith("run.nc  45.6 kB")
