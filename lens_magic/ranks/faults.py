"""Deliberate faults, by which the tests check that a rank which fails, dies or hangs costs the user nothing.

``LENS_FAULT=kind:rank:event:count`` makes one rank misbehave when it emits an event (token, projecting, loading) for the
count-th time: kind "raise" raises, "kill" sends itself SIGKILL, "hang" hangs, "print" prints. Read once, when a rank starts.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

VARIABLE = "LENS_FAULT"


def planned_for(rank: int) -> Callable[[Any], None] | None:
    """Return the function to call at this rank's every event, or None if no fault is planned for it."""
    kind, _, rest = os.environ.get(VARIABLE, "").partition(":")
    if not rest:
        return None
    who, event, count = rest.split(":")
    if int(who) != rank:
        return None
    seen: Counter[str] = Counter()

    def fault(happened: Any) -> None:
        seen[happened[0]] += 1
        if happened[0] == event and seen[event] == int(count):
            _KINDS[kind]()

    return fault


def _raise() -> None:
    raise RuntimeError("a fault on purpose")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    while True:
        time.sleep(60)


def _print() -> None:
    os.write(1, b"words on purpose\n")


_KINDS = {"raise": _raise, "kill": _kill, "hang": _hang, "print": _print}
