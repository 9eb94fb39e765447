"""Paths as users give them."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import LensError


def path_of(given: str | Path) -> Path:
    """Return a path with ``~`` and ``~user`` written out.

    Raises:
        LensError: there is no such user or home folder, or the path holds what none can.
    """
    try:
        path = Path(given).expanduser()
        if b"\0" in os.fsencode(path):  # which raises for half of a character
            raise ValueError("it holds a zero byte")
    except (RuntimeError, ValueError) as error:
        raise LensError(f"{str(given)!r} is no path of a file or folder: {error}") from None
    return path
