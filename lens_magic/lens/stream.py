"""Projecting during generation, within a share of its time.

With every token, rank 0 decides from the cost of projecting so far how many rows to project before the next one, and sends
that number to all ranks together with the token. Rows that remain after the last token are projected then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ..ranks.rank import Rank

SHARE = 0.06
"""Largest share of the time since the first token that may go into projecting."""

_PAUSE_S = 0.2  # a person watches the rows: no need to show each one separately

Project = Callable[[int, int], "dict[str, np.ndarray] | None"]
"""Projects rows first … end − 1 of the run on all ranks; gives their variables on rank 0, None on others."""


class Stream:
    """Projects a run's rows as they come.

    Args:
        project: collective.
        before: number of rows captured before the first token is chosen (the prompt's).

    Attributes:
        parts: variables of the rows projected so far, in order; on rank 0 only.
        done: how many rows those are.
        spent_s: seconds spent on projecting.
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
        self._call: tuple[int, float] | None = None  # rows and seconds of the last call
        self._fixed_s, self._each_s = 0.0, 0.0  # of a call, and of each of its rows

    def tell(self) -> Sequence[float]:
        """Return how many rows all ranks are to project once the coming token is chosen; only rank 0's answer counts."""
        now = time.perf_counter()
        if self._begun is None or self.rank.rank != 0:
            return (0.0,)
        pending = self._there - self.done
        if pending <= 0 or now - self._last < _PAUSE_S:
            return (0.0,)
        if self._call is None:  # the first row shows what one costs
            return (1.0,)
        rows = min(pending, int((SHARE * (now - self._begun) - self.spent_s - self._fixed_s) / self._each_s))
        # Few rows at a time would spend the share on calls; and two numbers of rows are needed to tell the call's cost apart.
        enough = max(2 if self._call[0] == 1 else 1, self._fixed_s / self._each_s)
        return (float(rows) if rows >= min(pending, enough) else 0.0,)

    def after_step(self, tokens: int, told: Sequence[float]) -> None:
        """Project as many rows as rank 0 has decided."""
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
        self._learn(end - self.done, self._last - started)
        self.spent_s += self._last - started
        self.done = end

    def _learn(self, rows: int, seconds: float) -> None:
        """Tell the cost of a call from that of its rows, by this call and the one before."""
        most = seconds / rows
        each = most if self._call is None else self._each_s
        if self._call is not None and rows != self._call[0]:
            each = (seconds - self._call[1]) / (rows - self._call[0])
        self._each_s = min(max(each, most / 8), most)  # as times vary, this can be far off
        self._fixed_s = seconds - self._each_s * rows
        self._call = rows, seconds


def joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join the variables of consecutive rows.

    Parts can differ in the number of followed tokens; missing ones are filled with NaN and −1, as elsewhere.
    """
    return {name: _joined(name, [part[name] for part in parts]) for name in parts[0]}


def _joined(name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    if name.startswith("tracked_"):
        widest = max(array.shape[-1] for array in arrays)
        missing = np.nan if np.issubdtype(arrays[0].dtype, np.floating) else -1
        gaps = [[(0, 0)] * (array.ndim - 1) + [(0, widest - array.shape[-1])] for array in arrays]
        arrays = [np.pad(array, gap, constant_values=missing) for array, gap in zip(arrays, gaps, strict=True)]
    return np.concatenate(arrays, axis=0 if name == "tracked_id" else 2)
