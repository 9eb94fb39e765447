"""What a rank's memory is, on a GPU or on the host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .rank import Rank

if TYPE_CHECKING:
    import torch


def used_memory(device: torch.device) -> int:
    """Bytes in use: allocated on a GPU; on a CPU the proportional set size, in which pages shared by n ranks count 1/n each."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.memory_allocated(device))
    return _stated("smaps_rollup", "Pss:") or _resident()


def reset_peak_memory(device: torch.device) -> None:
    """Measure :func:`peak_memory` from here on."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # the peak is then the process's whole life's


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes since the last reset: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return _stated("status", "VmHWM:") or _resident()


def _stated(file: str, name: str) -> int | None:
    """Bytes that Linux states of this process under a name; None elsewhere."""
    try:
        lines = Path("/proc/self", file).read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def describe_rank(rank: Rank) -> dict[str, Any]:
    """What ``%lens status`` says of a rank."""
    import sys

    entry: dict[str, Any] = {"rank": rank.rank, "pid": os.getpid(), "device": "cpu", "memory": 0}
    if "torch" not in sys.modules:  # nothing was loaded yet; asking is no reason to load it
        return {**entry, "memory": _resident()}
    from .collectives import device_for

    device = device_for(rank)
    return {**entry, "device": str(device), "memory": used_memory(device)}
