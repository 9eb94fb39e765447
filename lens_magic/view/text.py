"""Token text made safe to show: every character visible, none able to affect its neighbours.

A vocabulary holds leading spaces, newlines, control bytes, lone combining marks and bidirectional overrides. `visible`
turns any of them into a short printable string. Nothing here escapes HTML: `html.escape` (Python) and `textContent`
(browser) do that where a string becomes markup.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

SPACE = "·"
DOTTED_CIRCLE = "◌"
EMPTY = "∅"

NO_MATH = "tex2jax_ignore mathjax_ignore"
"""Classes of an element in which notebooks leave ``$…$`` as it is, and do not typeset it as a formula."""

JOINERS = "\u200c\u200d"
"""By these letters of Persian and of Indian scripts are written together or apart: kept in running text, where that shows."""

_PICTURES = {" ": SPACE, "\n": "⏎", "\t": "⇥", "\r": "\\r"}
# Characters that change the direction of everything after them: embeddings, overrides, isolates.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Letters and symbols by category, but drawn blank.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_ZERO_WIDTH_JOINER = JOINERS[1]
_HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@cache
def _picture(char: str) -> str:
    """Return a character's picture or escape; the character itself if it is visible."""
    if char in _PICTURES:
        return _PICTURES[char]
    if char in _BLANK or unicodedata.category(char) in _HIDDEN_CATEGORIES:
        return _escape(char)
    return char


def _joins_emoji(text: str, i: int) -> bool:
    """Whether the joiner at `i` sits between two pictographs, so that removing it would split a symbol."""
    if not 0 < i < len(text) - 1:
        return False
    before = unicodedata.category(text[i - 1])
    return before in ("So", "Sk", "Mn") and unicodedata.category(text[i + 1]) in ("So", "Sm")


def running(text: str) -> str:
    """Return text for reading as it streams, escaping only what a terminal acts on or what changes text direction.

    >>> running("a\\tb\\r\\u202ec")
    'a\\tb\\\\r\\\\u202ec'
    """
    if text.isprintable():
        return text
    return "".join(
        _picture(c) if c in _TURNING or (c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")) else c for c in text
    )


def visible(text: str, keep: str = "") -> str:
    """Return `text` with spaces, control, zero-width and bidirectional characters replaced by pictures or escapes.

    Characters in `keep` stay as they are, such as white space in running text.

    >>> visible(" the\\n")
    '·the⏎'
    >>> visible("a\\u202eb")
    'a\\\\u202eb'
    """
    if not text:
        return EMPTY
    if text.isascii() and text.isprintable():
        return text if " " in keep else text.replace(" ", SPACE)
    shown = "".join(
        c if c in keep or (c == _ZERO_WIDTH_JOINER and _joins_emoji(text, i)) else _picture(c) for i, c in enumerate(text)
    )
    if unicodedata.category(text[0]) in ("Mn", "Mc", "Me") and text[0] not in _BLANK:
        return DOTTED_CIRCLE + shown
    return shown


def minus(text: str) -> str:
    """Return `text` with minus signs before its negative numbers: a hyphen is short, and a line may end after it.

    >>> minus("v-1 add α=-1.5, -2 nats")
    'v-1 add α=−1.5, −2 nats'
    """
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def fitted(text: str, width: int, right: bool = False) -> str:
    """Return `text` in `width` columns of a terminal: padded, or cut with an ellipsis.

    From right to left it is between marks (no columns) without which two such columns and what is between them change places.

    >>> fitted("·Massachusetts", 8), fitted("漢字", 6)
    ('·Massac…', '漢字  ')
    """
    wide = sum(map(_columns, text))
    if wide > width:
        kept = ""
        for char in text:
            if sum(map(_columns, kept + char)) >= width:
                break
            kept += char
        text = kept + "…"
        wide = sum(map(_columns, text))
    filling = " " * (width - wide)
    if any(unicodedata.bidirectional(char) in ("R", "AL") for char in text):
        text = f"\u2068{text}\u2069"
    return filling + text if right else text + filling


@cache
def _columns(char: str) -> int:
    """Number of terminal columns that a character takes."""
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
