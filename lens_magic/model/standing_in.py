"""Replacing the forwards of modules within a ``with`` block; they have their own again when it ends, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Forward = Callable[..., Any]


@contextlib.contextmanager
def standing_in(forwards: Mapping[Any, Forward]) -> Iterator[None]:
    """Replace the forwards of modules within the ``with`` block."""
    theirs = {module: vars(module).get("forward") for module in forwards}  # a model attached from memory may have its own
    try:
        for module, forward in forwards.items():
            module.forward = forward  # an instance's attribute hides the class's
        yield
    finally:
        for module, own in theirs.items():
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own
