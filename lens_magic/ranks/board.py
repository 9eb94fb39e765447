"""Small collectives over memory that the ranks of one host share.

A decode step sums as many numbers as the model is wide, twice per layer: microseconds of work. If ranks share cores, each sum
takes a millisecond with MPI: a rank that only waits keeps the core from those it waits for (docs/ranks.md has numbers).
"""

from __future__ import annotations

import mmap
import os
import platform
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .environment import runtime_folder
from .rank import Aborted, Rank

if TYPE_CHECKING:
    import threading

CAPACITY = 256 << 10
"""Bytes a rank can post at a time; larger tensors go over MPI."""

_LINE = 8  # 64-bit numbers per cache line; each rank's count has a line to itself
_CROWDED_LOOKS = 10  # with more ranks than cores: how often a rank polls before it sleeps, leaving its core to the others
_PATIENCE_S = 0.02  # with a core to itself a rank polls for longer than a step ever takes
_NAP_S = 1e-5


class Board:
    """Shared memory in which every rank posts values and reads those of all ranks.

    It has two halves, used in turn: no rank posts in one again before all have posted in the other, and so have read the first.
    Every rank computes results from the same numbers in the same order, so they are the same bit for bit.

    Args:
        memory: shared by all ranks and zero at first; a cache line and twice :data:`CAPACITY` for each rank.
        crowded: this rank has no core to itself.
    """

    def __init__(self, memory: mmap.mmap, rank: int, size: int, aborted: threading.Event, crowded: bool) -> None:
        self._rank, self._size, self._aborted, self._crowded = rank, size, aborted, crowded
        self._step = 0
        self._posted = memoryview(memory)[: size * _LINE * 8].cast("q")
        whole = np.frombuffer(memory, np.uint8, 2 * size * CAPACITY, size * _LINE * 8)
        self._halves = whole.reshape(2, size, CAPACITY)
        self._typed: dict[Any, np.ndarray] = {}

    @classmethod
    def open(cls, rank: Rank) -> Board | None:
        """Open the board of a group; None if its ranks share no memory. Collective."""
        # On processors other than x86-64 another rank may see the count before the values it stands for.
        if rank.local_size != rank.size or (sys.platform, platform.machine()) != ("linux", "x86_64"):
            return None
        size = rank.size * (_LINE * 8 + 2 * CAPACITY)
        made = _make_file(size) if rank.rank == 0 else ""
        try:
            path = rank.texts(made)[0]
            if not path:
                return None
            descriptor = os.open(path, os.O_RDWR)
            try:
                memory = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
            rank.wait_for(rank.communicator.Ibarrier())
        finally:
            if made:
                Path(made).unlink()
        return cls(memory, rank.rank, rank.size, rank.aborted, crowded=rank.cores < 1)

    def reduce(self, values: np.ndarray, operation: np.ufunc) -> None:
        """Reduce contiguous values over all ranks, in place."""
        flat = values.reshape(-1)
        operation.reduce(self._exchange(flat), axis=0, dtype=flat.dtype, out=flat)

    def gather(self, values: np.ndarray, into: np.ndarray) -> None:
        """Write every rank's contiguous values to ``into``, ``[size, *shape]``."""
        into.reshape(self._size, values.size)[...] = self._exchange(values.reshape(-1))

    def broadcast(self, values: np.ndarray, root: int) -> None:
        """Overwrite values with the root rank's."""
        flat = values.reshape(-1)
        flat[...] = self._exchange(flat)[root]

    def told(self, flag: bool) -> bool:
        """Return rank 0's flag on every rank."""
        values = np.array([flag], np.uint8)
        self.broadcast(values, root=0)
        return bool(values[0])

    def _exchange(self, flat: np.ndarray) -> np.ndarray:
        """Post values and return those of all ranks, ``[size, n]``, to be read before the next exchange."""
        typed = self._typed.get(flat.dtype)
        if typed is None:
            typed = self._typed[flat.dtype] = self._halves.view(flat.dtype)
        self._step += 1
        parts = typed[self._step % 2, :, : flat.size]
        parts[self._rank] = flat
        self._posted[self._rank * _LINE] = self._step
        self._wait()
        return parts

    def _wait(self) -> None:
        posted, step, looks, begun = self._posted, self._step, 0, 0.0
        for other in range(0, self._size * _LINE, _LINE):
            while posted[other] < step:
                if self._aborted.is_set():
                    raise Aborted
                looks += 1
                if looks == 1:
                    begun = time.monotonic()
                if looks > _CROWDED_LOOKS and (self._crowded or time.monotonic() - begun > _PATIENCE_S):
                    time.sleep(_NAP_S)
                else:
                    os.sched_yield()  # lets another of this core's ranks run, or costs a microsecond


def _make_file(size: int) -> str:
    """Create a file of zeros in memory and return its path; "" if there is no room for it."""
    path = str(runtime_folder() / f"board-{secrets.token_hex(8)}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)  # otherwise a write when no memory is left would kill the process
    except OSError:
        Path(path).unlink()
        return ""
    finally:
        os.close(descriptor)
    return path
