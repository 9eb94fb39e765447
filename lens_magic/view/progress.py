"""One progress bar for all ranks: in a notebook an element that disappears when done, in a terminal tqdm's."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

_QUIET_S = 0.4  # shorter work needs no bar
_BETWEEN_S = 0.1  # each update is a message in a notebook

STAGES = {
    "loading": ("loading", "blocks"),
    "prefill": ("reading the prompt", "tokens"),
    "token": ("generating", "tokens"),
    "projecting": ("projecting", "positions"),
    "reading": ("reading", "texts"),
    "learning": ("learning", "layers"),
    "evaluating": ("evaluating", "questions × orders × layers"),
    "training": ("training", "steps"),
    "measuring": ("measuring", "batches"),
}
"""The stages that ranks report: what is being done, and what is counted."""


class Bars:
    """A progress bar for the stage that the ranks currently report; pass it as ``on_event``.

    Args:
        tokens: number of tokens to generate; None for no bar while generating, when the text itself is shown.
        labels: labels that replace those of stages, by stage.
    """

    def __init__(self, tokens: int | None = None, **labels: str) -> None:
        self._tokens, self._labels = tokens, labels
        self._stage, self._bar = "", Progress("", "")
        self._made = 0

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, event: tuple[Any, ...]) -> None:
        """Handle an event from the ranks."""
        stage = event[0]
        if stage not in STAGES or (stage == "token" and (self._tokens is None or event[2:] not in ((), (0,)))):
            return  # in a batch, only the first sequence's tokens are counted
        if stage != self._stage:
            self._bar.close()
            label, unit = STAGES[stage]
            self._stage, self._bar = stage, Progress(self._labels.get(stage, label), unit)
        if stage == "token":
            self._made += 1
        self._bar.update(*((self._made, self._tokens) if stage == "token" else event[1:3]))

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


@contextmanager
def watched(tokens: int | None = None, **labels: str) -> Iterator[Callable[[tuple[Any, ...]], None] | None]:
    """Yield :class:`Bars` where someone can see them, in a notebook or a terminal; None otherwise, as in a log."""
    if not in_notebook() and not sys.stderr.isatty():
        yield None
        return
    with Bars(tokens, **labels) as bars:
        yield bars


class Progress:
    """A bar that appears only if the work takes a while, and leaves nothing behind.

    Args:
        label: what is being done.
        unit: what is counted.
    """

    def __init__(self, label: str, unit: str) -> None:
        self._label, self._unit = label, unit
        self._begun: float | None = time.monotonic()
        self._drawn = 0.0
        self._shown: Any = None

    def update(self, done: int, total: int) -> None:
        """Show ``done`` of ``total``. A total of 0 means that nothing can be counted yet, and shows the bar at once."""
        now = time.monotonic()
        if total == 0:
            self._begun = None
            self._draw(0, 0, f"{self._label} …")
            return
        if self._begun is None:  # counting begins only now
            self._begun = now
        if self._shown is None and (now - self._begun < _QUIET_S or done >= total):
            return
        if now - self._drawn >= _BETWEEN_S:
            pace = _pace(done, total, now - self._begun)
            self._draw(done, total, f"{self._label}: {done:,} of {total:,} {self._unit}{pace}")
            self._drawn = now

    def _draw(self, done: int, total: int, text: str) -> None:
        if self._shown is None:
            self._shown = _NotebookBar() if in_notebook() else _TerminalBar(self._label, self._unit)
        self._shown.draw(done, total, text)

    def close(self) -> None:
        """Remove the bar."""
        if self._shown is not None:
            self._shown.clear()
            self._shown = None


def _pace(done: int, total: int, elapsed: float) -> str:
    """Rate and time left, as text."""
    if not done or not elapsed:
        return ""
    rate, left = done / elapsed, elapsed / done * (total - done)
    minutes, seconds = divmod(round(left), 60)
    pace = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    return f", {pace} a second, {f'{minutes} min ' if minutes else ''}{seconds} s left"


class _NotebookBar:
    def __init__(self) -> None:
        from IPython.display import display

        self._handle = display(self._as_data("", ""), display_id=True, raw=True)

    def draw(self, done: int, total: int, text: str) -> None:
        far = f'value="{done}" max="{total}" ' if total else ""
        bar = f'<progress {far}aria-label="{escape(text)}"></progress>'
        html = f'<div style="font-size:0.9em">{bar} {escape(text)}</div>'
        self._handle.update(self._as_data(html, text), raw=True)

    def clear(self) -> None:
        self._handle.update(self._as_data("", ""), raw=True)

    @staticmethod
    def _as_data(html: str, text: str) -> dict[str, str]:
        return {"text/html": html, "text/plain": text}  # an IPython display object would leave its repr in saved notebooks


class _TerminalBar:
    def __init__(self, label: str, unit: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(desc=label, unit=f" {unit}", leave=False)

    def draw(self, done: int, total: int, text: str) -> None:
        self._bar.total = total or None
        self._bar.update(done - self._bar.n)

    def clear(self) -> None:
        self._bar.close()


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, whose outputs can be replaced."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")
