"""Other forwards for modules, and theirs again when the ``with`` block ends, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Forward = Callable[..., Any]


@contextlib.contextmanager
def standing_in(forwards: Mapping[Any, Forward]) -> Iterator[None]:
    """Give modules other forwards for a while."""
    theirs = {module: vars(module).get("forward") for module in forwards}  # a model attached from memory may bring its own
    try:
        for module, forward in forwards.items():
            module.forward = forward  # the instance's hides the class's
        yield
    finally:
        for module, own in theirs.items():
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own
