"""Unsteered and steered text side by side, the first difference marked, tokens shaded by the change in log-probability."""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from ..model.tokens import TextStream
from ..steer.spans import in_short
from .text import JOINERS, NO_MATH, minus, running, visible

if TYPE_CHECKING:
    from ..steer.compare import Side, SteeredText

EVERY_S = 0.1  # between two drawings of growing texts
FULL_SHADE = 4.0  # change in nats from which on the shade has full strength

# A saved notebook's background is unknown: translucent shades and inherited colours are readable on any, light or dark.
# What matters is inline: a notebook that is not trusted has no style sheets, nor have many viewers.
_COLUMNS = "display:flex;flex-wrap:wrap;gap:8px"
_COLUMN = "flex:1 1 260px;min-width:0;border:1px solid rgba(128,128,128,.35);border-radius:6px;padding:6px 10px"
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext"
_STYLE = """<style>
.lens-steered{font:13px/1.5 system-ui,sans-serif;max-width:100%;print-color-adjust:exact}
.lens-steered p{margin:6px 0 0;font-size:12px}
.lens-steered .lens-column p{margin:0 0 4px;opacity:.8}
.lens-steered .lens-text{font:13px/1.6 ui-monospace,Menlo,Consolas,monospace}
.lens-steered :is(span,mark){border-radius:3px;forced-color-adjust:none}
</style>"""
# On a <mark> element, which stands out even without it. A border takes room, and so covers none of what is beside it. Forced
# colours would make its text black over what they leave of the shade, which on a dark page is next to nothing.
_MARK = "border:2px solid #d97a2b;padding:0 1px;color:inherit;forced-color-adjust:none;background:"


def as_html(compared: SteeredText) -> str:
    """Return both texts as one HTML fragment without scripts; token texts are escaped."""
    columns = [_column(name, _spans(compared, side)) for name, side in _sides(compared)]
    return _page(columns, f"<p>{escape(minus(_caption(compared)))}</p><p>{_legend(compared)}</p>")


def as_text(compared: SteeredText) -> str:
    """Return both texts for a terminal; the first difference is marked with ▸."""
    lines = [_caption(compared)]
    for name, side in _sides(compared):
        words = [
            f"{'▸' * first}{visible(compared.token_texts.get(side.output_ids[number], ''), keep=' ')}"
            for number, first in _shown(compared, side)
        ]
        change = f" ({sum(side.log_prob_change):+.2f} nats)" if side.log_prob_change else ""
        lines.append(f"{name}{change}: {''.join(words)}")
    return "\n".join(lines)


def _sides(compared: SteeredText) -> tuple[tuple[str, Side], ...]:
    return ("unsteered", compared.unsteered), ("steered", compared.steered)


def _shown(compared: SteeredText, side: Side) -> Iterator[tuple[int, bool]]:
    """Yield the numbers of the tokens that are shown, and whether it is the first that differs: no end token but that one."""
    for number, index in enumerate(side.output_ids):
        first = number == compared.first_difference
        if first or index not in compared.end_ids:
            yield number, first


def _caption(compared: SteeredText) -> str:
    at = compared.first_difference
    where = "the texts are the same" if at is None else f"they part at token {at}"
    stopped = "; interrupted" if compared.interrupted else ""
    moved = "".join(
        f"; {name} was moved from {_numbers(values[0])} to {_numbers(values[-1])}"
        for name, values in (("α", compared.alphas), ("clip", compared.clips))
        if len(set(values)) > 1
    )
    return f"{'; '.join(map(in_short, compared.steering))}: {where}{moved}{stopped}"


def _numbers(values: tuple[float | None, ...]) -> str:
    return ", ".join("none" if value is None else f"{value:.3g}" for value in values)


def _legend(compared: SteeredText) -> str:
    marked = ""
    if compared.first_difference is not None:
        marked = f'<mark class="lens-first" style="{_MARK}none">marked</mark>: the first that differs; '
    shades = "".join(
        f'<span style="background:{_shade(change)}">&nbsp;{minus(f"{change:+.0f}")}&nbsp;</span>'
        for change in (-4.0, -1.0, 1.0, 4.0)
    )
    if not compared.unsteered.log_prob_change:
        return marked.rstrip("; ")
    return f"{marked}shade: change of the token's log-probability by steering, in nats {shades}"


def _spans(compared: SteeredText, side: Side) -> str:
    changes = side.log_prob_change
    found = []
    for number, first in _shown(compared, side):
        text = escape(visible(compared.token_texts.get(side.output_ids[number], ""), keep=" \n" + JOINERS))
        # Where a line ends before a token, its space would be a piece by itself at that end, marked and shaded.
        word = text.lstrip(" \n") or text
        space = text.removesuffix(word)
        shade, hint = "none", ""
        if number < len(changes):
            before, after = side.log_probs_unsteered[number], side.log_probs_steered[number]
            shade = _shade(changes[number])
            told = minus(f"log p {before:.2f} unsteered, {after:.2f} steered: {changes[number]:+.2f}")
            hint = f' title="{told}"'
        if first:
            found.append(f'{space}<mark class="lens-first" style="{_MARK}{shade}"{hint}>{word}</mark>')
        else:
            found.append(f'{space}<span style="background:{shade}"{hint}>{word}</span>')
    return "".join(found)


def _shade(change: float) -> str:
    """Blue where steering made the token more probable, orange where less."""
    colour, most = ("64,132,240", 0.5) if change > 0 else ("230,120,30", 0.45)  # with more, VS Code's text is too weak
    return f"rgba({colour},{min(abs(change) / FULL_SHADE, 1.0) * most:.2f})"


def _column(name: str, inner: str) -> str:
    text = f'<div class="lens-text" style="{_TEXT}" dir="auto">{inner}</div>'
    return f'<div class="lens-column" style="{_COLUMN}"><p><b>{escape(name)}</b></p>{text}</div>'


def _page(columns: list[str], below: str = "") -> str:
    return f'<div class="lens-steered {NO_MATH}">{_STYLE}<div style="{_COLUMNS}">{"".join(columns)}</div>{below}</div>'


class Growing:
    """Both texts while they are generated: collects ("token", id, sequence) events and renders both columns as HTML.

    Args:
        model: the model whose tokenizer and end tokens are used.
    """

    def __init__(self, model: Any) -> None:
        self._streams = [TextStream(model.tokenizer, model.stop_ids) for _ in range(2)]
        self.texts = ["", ""]
        self._drawn = 0.0

    def hear(self, event: tuple[Any, ...]) -> bool:
        """Handle an event; return whether it is time to draw again."""
        if event[0] != "token":
            return False
        self.texts[event[2]] += self._streams[event[2]].add(event[1])
        if time.monotonic() - self._drawn < EVERY_S:
            return False
        self._drawn = time.monotonic()
        return True

    def html(self) -> str:
        """Return both columns as they are now."""
        shown = [escape(running(text)) for text in self.texts]
        return _page([_column(name, text) for name, text in zip(("unsteered", "steered"), shown, strict=True)])


class Streaming:
    """Display both growing texts and remove them when they are done; in a terminal, print the steered text.

    After an error the display stays, as nothing else shows the texts.
    """

    def __init__(self, model: Any) -> None:
        from .progress import in_notebook

        self._growing = Growing(model)
        self._in_notebook = in_notebook()
        self._handle: Any = None
        self._printed = 0

    def __enter__(self) -> Streaming:
        return self

    def __call__(self, event: tuple[Any, ...]) -> None:
        """Handle an event of the generation."""
        if not self._growing.hear(event):
            return
        if self._in_notebook:
            self._draw(self._growing.html())
        else:
            self._print()

    def _print(self, end: str = "") -> None:
        steered = self._growing.texts[1]
        print(running(steered[self._printed :]), end=end, flush=True)  # noqa: T201 - the cell's output
        self._printed = len(steered)

    def _draw(self, html: str) -> None:
        from IPython.display import display

        # IPython's HTML object would leave its repr in saved notebooks; no plain text, as the result has it later.
        data = {"text/html": html, "text/plain": ""}
        if self._handle is None:
            self._handle = display(data, display_id=True, raw=True)
        else:
            self._handle.update(data, raw=True)

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._handle is not None:
            self._draw("" if kind is None else self._growing.html())
        elif self._printed:
            self._print(end="\n")  # the text since the last drawing
