"""Numbers, in words, names, and what files say."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any


def counted(number: int, noun: str) -> str:
    """Return ``1 token``, ``1,500 tokens``: the number with its noun, whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(count: int) -> str:
    """Format a number of bytes for a reader, such as "1.5 GB"."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            value = count / 10**power
            return f"{value:,.1f} {unit}" if value < 100 else f"{value:,.0f} {unit}"
    return f"{count} bytes"


def quoted(given: Any, most: int = 60) -> str:
    """Return a value as Python writes it, on one line, cut after ``most`` characters; its type's name if it has no repr."""
    if isinstance(given, str):
        return repr(given if len(given) <= most else f"{given[:most]}…")
    try:
        told = " ".join(line.strip() for line in repr(given).splitlines())
    except Exception:  # of an integer of thousands of digits, say
        told = f"<{type(given).__name__}>"
    return told if len(told) <= most else f"{told[:most]}…"


def finite_again(dtype: str, steered: bool) -> str:
    """Return what may make numbers finite that were not.

    Args:
        dtype: the model's.
        steered: whether something is added to its states.
    """
    wider = {"float16": "bfloat16 or float32", "bfloat16": "float32"}.get(dtype)  # bfloat16 has float32's range
    ways = ["a smaller α"] * steered + [f"another dtype (--dtype {wider})"] * (wider is not None)
    return f"{' or '.join(ways)} may help" if ways else "its weights may be damaged"


def dimensions(**sizes: int) -> str:
    """Return ``3 sites × 8 layers`` for ``site=3, layer=8``."""
    return " × ".join(counted(size, name) for name, size in sizes.items())


def percent(probability: float, digits: int = 0) -> str:
    """Return ``37`` or, with a digit, ``37.2``; never rounded up to certainty, but ``>99`` or ``>99.9``."""
    shown = f"{100 * probability:.{digits}f}"
    return shown if float(shown) < 100 else f">{100 - 10.0**-digits:.{digits}f}"


def as_name(word: str) -> str:
    """Return a name as Python reads it, in Unicode's form NFKC: µ (micro), ﬁ and ª become μ (mu), fi and a."""
    return unicodedata.normalize("NFKC", word)


def printable(told: Any) -> Any:
    """Return what a file says, in texts, lists and mappings, with control characters escaped: a terminal would obey them."""
    if isinstance(told, str):
        return told if told.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in told)
    if isinstance(told, Mapping):
        return {printable(name): printable(value) for name, value in told.items()}
    return [printable(value) for value in told] if isinstance(told, list) else told
