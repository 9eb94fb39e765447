"""Peak memory beyond that of a loaded and warm model: what activations, caches and workspaces take.

This is the operating system's own figure (Linux: VmHWM, the largest resident set since it was last reset), so that nothing is
left out. For all methods alike, the harness makes the C library return every freed block of 64 KB or more at once
(``MALLOC_MMAP_THRESHOLD_``); otherwise memory kept for reuse would be counted. Smaller blocks are returned on request before
each run; otherwise a method that allocates many of them would reuse the last run's.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}


def begin(rank: Any = None) -> int:
    """Start measuring in this process; return the bytes resident now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _stated("VmRSS:")


def peak(rank: Any = None) -> int:
    """Return the largest number of bytes resident since :func:`begin`."""
    return _stated("VmHWM:")


def available() -> int:
    """Return the bytes of memory available on the machine."""
    return _stated("MemAvailable:", Path("/proc/meminfo"))


def _stated(name: str, file: Path = Path("/proc/self/status")) -> int:
    for line in file.read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"{file} does not state {name}")
