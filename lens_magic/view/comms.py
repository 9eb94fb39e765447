"""Comm handling for widgets that are used while the kernel is busy."""

from __future__ import annotations

from typing import Any


def hear_while_busy(widget: Any) -> None:
    """Deliver the browser's messages to a widget where the browser addressed them: to a subshell, while a cell runs.

    ipykernel 7.4 delivers them to the thread that last sent on the comm, which is the busy one.
    """
    if hasattr(widget.comm, "_reply_subshell_for"):
        widget.comm._reply_subshell_for = None
