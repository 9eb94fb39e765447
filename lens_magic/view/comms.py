"""What widgets that are used while the kernel is busy need of their comms."""

from __future__ import annotations

from typing import Any


def hear_while_busy(widget: Any) -> None:
    """Have what the browser says to a widget go where the browser addressed it: to a subshell, while a cell runs.

    ipykernel 7.4 hands it to the thread that spoke on the comm last, which is the busy one.
    """
    if hasattr(widget.comm, "_reply_subshell_for"):
        widget.comm._reply_subshell_for = None
