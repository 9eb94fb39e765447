"""Exceptions raised when something the user asked for cannot be done."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_NOT_THE_USERS = (__package__, "IPython")


class LensError(Exception):
    """An error in one clear line: what was given and what would work. Nothing was changed.

    IPython shows the line alone, without a traceback; the cell still counts as failed, so "run all" stops.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class RankError(LensError):
    """A command failed on a rank; the ranks are still there and ready for the next command.

    Attributes:
        rank: the rank the error came from.
        remote_traceback: the traceback on that rank, as text.
    """

    def __init__(self, rank: int, summary: str, remote_traceback: str) -> None:
        super().__init__(f"rank {rank}: {summary}")
        self.rank = rank
        self.remote_traceback = remote_traceback

    def _render_traceback_(self) -> list[str]:
        return [f"Traceback on rank {self.rank}:", self.remote_traceback.rstrip(), *super()._render_traceback_()]


class RanksLost(LensError):
    """One or more ranks have died, or were given up; variables and results are untouched."""


class Interrupted(KeyboardInterrupt):
    """The user interrupted a command; ``result`` is what was done by then."""

    def __init__(self, result: Any) -> None:
        super().__init__("stopped; what was done by then is the error's `result` (in a notebook: sys.last_value.result)")
        self.result = result

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def warn(message: str) -> None:
    """Warn of the user's line that led here, not of the line of this package, or of IPython's, that noticed."""
    frame: FrameType | None = sys._getframe(1)
    level = 2  # as warnings counts them: 1 is this function
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _NOT_THE_USERS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level if frame is not None else 2)


def reason_of(error: Exception, whole: bool = False) -> str:
    """Return in one line why something failed.

    Args:
        whole: take all the error says, a path too, not its first line: the hub's errors begin with a number, those of
            transformers may begin with a list's heading, and both give the reason below.
    """
    text = str(error) if whole else getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return " ".join(str(text).split()) or type(error).__name__


class Outcome:
    """What a command has made, for the interrupt that stops it to carry.

    Attributes:
        result: None until there is one.
        stopped: an interrupt that the ranks have acted on has cut it short.
    """

    def __init__(self) -> None:
        self.result: Any = None
        self.stopped = False

    def keep(self, result: _Result, stopped: bool = False) -> _Result:
        """Keep a result and return it."""
        self.result, self.stopped = result, stopped
        return result


def even_if_stopped(make: Callable[[], _Result]) -> tuple[_Result, bool]:
    """Return what ``make`` returns, or what it had done when the user stopped it; and whether they did."""
    try:
        return make(), False
    except Interrupted as interrupted:
        return interrupted.result, True
