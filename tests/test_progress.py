"""One bar for all ranks: when it shows, what it says, and that it leaves nothing behind."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lens_magic as lens
from lens_magic.errors import LensError
from lens_magic.session import Session
from lens_magic.view import progress
from lens_magic.view.progress import Bars, watched

Checkpoints = Callable[[str], Path]


class Drawn:
    """Bars as a notebook would show them."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.open = 0

    def bar(self) -> Drawn:
        self.open += 1
        return self

    def draw(self, done: int, total: int, text: str) -> None:
        self.said.append(text)

    def clear(self) -> None:
        self.open -= 1


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Bars drawn here, at once and every time, on a clock that goes a second a look."""
    seconds = iter(range(10_000))
    shown = Drawn()
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "_NotebookBar", shown.bar)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    return shown


def test_a_stage_at_a_time(drawn: Drawn) -> None:
    with Bars(tokens=4, loading="loading demo") as bars:
        bars(("loading", 1, 8))
        assert drawn.said == ["loading demo: 1 of 8 blocks, 1 a second, 7 s left"]
        assert drawn.open == 1
        bars(("loading", 8, 8))
        for token in (5, 6):
            bars(("token", token, 0))
            bars(("token", token, 1))  # the other sequence of a batch
        assert drawn.open == 1
        bars(("rows", 0, 4, {}))  # no stage
        bars(("projecting", 1000, 200_000))
    assert drawn.open == 0
    assert drawn.said[2:] == [
        "generating: 1 of 4 tokens, 1 a second, 3 s left",
        "generating: 2 of 4 tokens, 1 a second, 2 s left",
        "projecting: 1,000 of 200,000 positions, 1,000 a second, 3 min 19 s left",
    ]


def test_what_cannot_be_counted_yet_is_shown_at_once(drawn: Drawn) -> None:
    with Bars(loading="loading demo") as bars:
        bars(("loading", 0, 0))
        assert drawn.said == ["loading demo …"]
        for done in range(1, 4):
            bars(("loading", done, 8))
    assert drawn.said[1:] == [
        "loading demo: 1 of 8 blocks",
        "loading demo: 2 of 8 blocks, 2 a second, 3 s left",
        "loading demo: 3 of 8 blocks, 1.5 a second, 3 s left",
    ]
    assert drawn.open == 0


def test_loading_is_told_before_ranks_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh kernel they take most of the time. What is refused before needs no bar."""
    told: list[Any] = []
    session = Session(1)

    class Asked(Exception):
        pass

    def asked(*given: Any, **named: Any) -> Any:
        raise Asked

    with pytest.raises(LensError):
        session.load("/no/such/model", on_event=told.append)
    assert told == []
    monkeypatch.setattr("lens_magic.ranks.group.Group", asked)
    for does in (lambda: session.load("demo", on_event=told.append), lambda: session.restart(told.append)):
        told.clear()
        with pytest.raises(Asked):
            does()
        assert told == [("loading", 0, 0)]


def test_what_is_over_soon_needs_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Drawn()
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "_NotebookBar", shown.bar)
    with Bars(tokens=3) as bars:
        for step in range(3):
            bars(("token", step))
            bars(("prefill", step, 3))
    assert shown.said == []


def test_a_log_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "in_notebook", lambda: False)
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    with watched() as told:
        assert told is None


@pytest.mark.ranks(2)
def test_plain_functions_show_them(drawn: Drawn, checkpoints: Checkpoints) -> None:
    lens.load(str(checkpoints("llama-gqa")), ranks=2)
    lens.generate("A lens", 4, ignore_eos=True)
    lens.run("A lens", 4, ignore_eos=True)
    pairs: list[dict[str, Any]] = [{"positive": f"A lens {n}", "negative": f"A lamp {n}"} for n in range(3)]
    lens.train_vector(pairs, layers=[1], position="last")
    lens.train_tuned_lens(["A lens gathers light"] * 4, steps=3, tokens_per_step=8)
    stages = {text.partition(":")[0] for text in drawn.said}
    assert {"generating", "training"} <= stages
    assert any(stage.startswith("loading") for stage in stages)
    assert drawn.open == 0
