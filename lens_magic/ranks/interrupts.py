"""What Ctrl-C, or an interrupt of the kernel, does while ranks work."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def handled_by(note: Callable[[], None]) -> Iterator[None]:
    """Have interrupts within the ``with`` block call ``note`` instead; outside the main thread, where none come, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        note()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        # None: it was not set from Python and cannot be restored from there; Python's own takes its place.
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
