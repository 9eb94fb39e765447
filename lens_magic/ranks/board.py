"""Small collectives over memory that the ranks of one host share.

A decode step sums as many numbers as the model is wide, twice a layer: microseconds of work. Where ranks have to share cores,
MPI makes a millisecond of each: a rank that only waits keeps the core from those it waits for (docs/ranks.md has numbers).
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
"""Bytes a rank can post at a time; what is larger goes over MPI."""

_LINE = 8  # 64-bit numbers a cache line: each rank's count has one to itself
_CROWDED_LOOKS = 10  # with more ranks than cores: so often a rank looks before it sleeps, for which the others thank it
_PATIENCE_S = 0.02  # with a core to itself it looks for longer than a step ever takes
_NAP_S = 1e-5


class Board:
    """Memory in which every rank posts, and reads what all have posted.

    There are two halves, used in turn: nobody posts in one again before all have posted in the other, and so have read it.
    Every rank works out results from the same numbers in the same order, so they are the same to the bit.

    Args:
        memory: shared by all ranks, zeros at first: a cache line and twice :data:`CAPACITY` for each rank.
    """

    def __init__(self, memory: mmap.mmap, rank: int, size: int, aborted: threading.Event) -> None:
        self._rank, self._size, self._aborted = rank, size, aborted
        self._crowded = size > len(os.sched_getaffinity(0))
        self._step = 0
        self._posted = memoryview(memory)[: size * _LINE * 8].cast("q")
        whole = np.frombuffer(memory, np.uint8, 2 * size * CAPACITY, size * _LINE * 8)
        self._halves = whole.reshape(2, size, CAPACITY)
        self._typed: dict[Any, np.ndarray] = {}

    @classmethod
    def open(cls, rank: Rank) -> Board | None:
        """The board of a group, None where its ranks share no memory. Collective."""
        # Other processors than x86-64 may show another rank the count before what it counts.
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
        return cls(memory, rank.rank, rank.size, rank.aborted)

    def reduce(self, values: np.ndarray, operation: np.ufunc) -> None:
        """Reduce contiguous values over all ranks, in place."""
        flat = values.reshape(-1)
        operation.reduce(self._exchange(flat), axis=0, dtype=flat.dtype, out=flat)

    def gather(self, values: np.ndarray, into: np.ndarray) -> None:
        """Every rank's contiguous values, ``[size, *shape]``."""
        into.reshape(self._size, values.size)[...] = self._exchange(values.reshape(-1))

    def broadcast(self, values: np.ndarray, root: int) -> None:
        """Overwrite with the root rank's values."""
        flat = values.reshape(-1)
        flat[...] = self._exchange(flat)[root]

    def told(self, flag: bool) -> bool:
        """Rank 0's flag."""
        values = np.array([flag], np.uint8)
        self.broadcast(values, root=0)
        return bool(values[0])

    def _exchange(self, flat: np.ndarray) -> np.ndarray:
        """Post values and wait for those of all: ``[size, n]``, to be read before the next exchange."""
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
    """The path of a file of zeros in memory; "" where there is no room for it."""
    path = str(runtime_folder() / f"board-{secrets.token_hex(8)}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)  # or the first write where nothing is left would kill the process
    except OSError:
        Path(path).unlink()
        return ""
    finally:
        os.close(descriptor)
    return path
