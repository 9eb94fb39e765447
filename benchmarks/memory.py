"""Peak memory beyond what is there when a model is loaded and warm: what activations, caches and workspaces take.

The operating system's own figure (Linux: VmHWM, the largest resident set since it was last reset), so that nothing can be
left out. The harness lets the C library return every freed block of 64 KB or more at once (``MALLOC_MMAP_THRESHOLD_``), for
all methods alike; otherwise what it keeps for later would be counted. Smaller ones it returns when asked to, before each run:
else a method that makes many of them would find the last run's.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}


def begin(rank: Any = None) -> int:
    """Start measuring in this process; returns bytes resident now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _stated("VmRSS:")


def peak(rank: Any = None) -> int:
    """Largest number of bytes resident since :func:`begin`."""
    return _stated("VmHWM:")


def available() -> int:
    """Bytes the machine has left."""
    return _stated("MemAvailable:", Path("/proc/meminfo"))


def _stated(name: str, file: Path = Path("/proc/self/status")) -> int:
    for line in file.read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"{file} does not state {name}")
