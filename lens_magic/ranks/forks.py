"""What becomes of ranks in a process that is forked from theirs: they stay where they are."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from ..errors import RanksLost

NO_THREADS = (
    "this process was forked from one in which the ranks have worked, and torch would wait here for threads that only that "
    'one has; use them there, or in a process that is not forked (multiprocessing\'s "spawn")'
)


class _Disowns(Protocol):
    def disown(self) -> bool: ...


_groups: weakref.WeakSet[_Disowns] = weakref.WeakSet()
_forked: list[str] = []  # why this process cannot use torch, if it cannot


def tell(group: _Disowns) -> None:
    """Have a group disown its ranks in every process forked from this one."""
    _groups.add(group)


def require_own_threads() -> None:
    """Raise RanksLost if this process was forked from one in which torch has worked: a first rank of its own would hang."""
    if _forked:
        raise RanksLost(_forked[0])


def _disown_all() -> None:
    _forked.extend(NO_THREADS for group in list(_groups) if group.disown())


os.register_at_fork(after_in_child=_disown_all)
