"""Projecting while generation goes on, as far as the time given to it reaches.

Rank 0 decides with every token how many rows are to be projected before the next, from what projection has cost so far, and
tells all ranks with the token itself. What is not projected when the last token has come is projected then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ..ranks.rank import Rank

SHARE = 0.06
"""Of the time since the first token, how much may have gone into projecting."""

_PAUSE_S = 0.2  # rows are looked at by a person: no need to show each by itself

Project = Callable[[int, int], "dict[str, np.ndarray] | None"]
"""Projects rows first … end − 1 of the run on all ranks; on rank 0 their variables."""


class Stream:
    """Projects a run's rows as they come.

    Args:
        project: collective.
        before: rows that are there before the first token is chosen (the prompt's).

    Attributes:
        parts: variables of the rows projected so far, in order; on rank 0.
        done: how many rows those are.
        spent_s: seconds it took.
    """

    def __init__(self, rank: Rank, project: Project, before: int) -> None:
        self.rank = rank
        self.parts: list[dict[str, np.ndarray]] = []
        self.done = 0
        self.spent_s = 0.0
        self._project = project
        self._before = before
        self._there = before
        self._begun: float | None = None
        self._last = 0.0
        self._a_row: float | None = None  # what a row cost last time

    def tell(self) -> Sequence[float]:
        """How many rows all ranks are to project once the coming token is chosen; rank 0's word counts."""
        now = time.perf_counter()
        if self._begun is None or self.rank.rank != 0:
            return (0.0,)
        pending = self._there - self.done
        if pending <= 0 or now - self._last < _PAUSE_S:
            return (0.0,)
        if self._a_row is None:  # a first one shows what a row costs
            return (1.0,)
        affordable = int((SHARE * (now - self._begun) - self.spent_s) / self._a_row)
        return (float(min(pending, affordable)) if affordable > 0 else 0.0,)

    def after_step(self, tokens: int, told: Sequence[float]) -> None:
        """Project as many rows as rank 0 has told."""
        started = time.perf_counter()
        if self._begun is None:
            self._begun = started
        self._there = self._before + tokens
        rows = int(told[0])
        if rows == 0:
            return
        end = min(self.done + rows, self._there)
        part = self._project(self.done, end)
        if part is not None:
            self.parts.append(part)
            self.rank.emit(("rows", self.done, end, part))
        self._last = time.perf_counter()
        self._a_row = (self._last - started) / max(1, end - self.done)
        self.spent_s += self._last - started
        self.done = end


def joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Variables of consecutive rows as those of all of them.

    Tokens that are followed can be more at some rows than at others; missing ones are filled up as they are elsewhere.
    """
    return {name: _joined(name, [part[name] for part in parts]) for name in parts[0]}


def _joined(name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    if name.startswith("tracked_"):
        widest = max(array.shape[-1] for array in arrays)
        missing = np.nan if np.issubdtype(arrays[0].dtype, np.floating) else -1
        gaps = [[(0, 0)] * (array.ndim - 1) + [(0, widest - array.shape[-1])] for array in arrays]
        arrays = [np.pad(array, gap, constant_values=missing) for array, gap in zip(arrays, gaps, strict=True)]
    return np.concatenate(arrays, axis=0 if name == "tracked_id" else 2)
