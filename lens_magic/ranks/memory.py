"""Measuring a rank's memory, on a GPU or on the host."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LensError
from .rank import Rank

if TYPE_CHECKING:
    import torch


def used_memory(device: torch.device) -> int:
    """Return the bytes in use: allocated on a GPU; on a CPU the proportional set size (pages shared by n ranks count 1/n)."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.memory_allocated(device))
    return _stated("smaps_rollup", "Pss:") or resident_memory()


def reset_peak_memory(device: torch.device) -> None:
    """Measure :func:`peak_memory` from here on."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # the peak is then that of the process's whole life


def peak_memory(device: torch.device) -> int:
    """Return the largest number of bytes since the last reset: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return _stated("status", "VmHWM:") or resident_memory()


def stated_memory() -> int | None:
    """Return the bytes per rank that ``LENS_FREE_MEMORY`` states in place of what is measured; None if it is not set.

    Raises:
        LensError: it is not a number.
    """
    stated = os.environ.get("LENS_FREE_MEMORY", "")
    if stated and not stated.isdecimal():
        raise LensError(f"LENS_FREE_MEMORY {stated!r} is not a number of bytes; 8000000000 would be one")
    return int(stated) if stated else None


def free_memory(rank: Rank, device: torch.device) -> int:
    """Return the bytes this rank can still take: what its GPU or its host has free, divided evenly among the ranks there."""
    if (stated := stated_memory()) is not None:
        return stated
    if device.type != "cuda":
        return host_memory() // rank.local_size
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # cached for this process's next tensors
    if rank.gpus:
        sharing = rank.gpus.count(rank.gpus[rank.rank])
    else:  # not compared yet; by their numbers
        devices = torch.cuda.device_count()
        sharing = len(range(rank.local_rank % devices, rank.local_size, devices))
    return free // sharing + kept


class _Memory(ctypes.Structure):
    """NVML's ``nvmlMemory_t``."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def free_on_gpu(number: int) -> int:
    """Return the bytes that one of the GPUs this process sees has free, for a process that need not use it itself.

    CUDA tells only who has a context on the GPU, which takes about half a gigabyte there for as long as the process lives.
    The driver's management library (NVML) tells anybody; where it is missing or refuses, CUDA is asked.
    """
    import torch

    free = _told_by_nvml(str(torch.cuda.get_device_properties(number).uuid))
    return int(torch.cuda.mem_get_info(number)[0]) if free is None else free


def _told_by_nvml(uuid: str) -> int | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if library.nvmlInit_v2():
        return None
    try:
        handle, memory = ctypes.c_void_p(), _Memory()
        names = [f"{kind}-{uuid}".encode() for kind in ("GPU", "MIG")]  # a part of a GPU has a name of its own
        found = any(library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) == 0 for name in names)
        told = found and library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
        return int(memory.free) if told else None
    finally:
        library.nvmlShutdown()


def pinned_bytes(count: int) -> int:
    """Return the host memory that torch takes for ``count`` bytes of pinned memory: the next power of two."""
    return 1 << max(0, count - 1).bit_length() if count else 0


def give_back_cached() -> None:
    """Free what torch keeps for later requests of this process: memory of its GPU, and pinned memory."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        give_back_pinned()


def give_back_pinned() -> None:
    """Free pinned memory that is no longer used, which torch would keep for later requests of the same size."""
    import torch

    torch._C._host_emptyCache()


def host_memory() -> int:
    """Return the bytes available on this host without swapping, within the limits of this process's control groups."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_left_in_control_groups()])


def _left_in_control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yield the bytes left below each memory limit that applies to this process (Linux, control groups of version 2)."""
    try:
        paths = [line.removeprefix("0::") for line in own.read_text(encoding="utf-8").splitlines() if line.startswith("0::")]
    except OSError:
        return
    for path in paths:
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            try:
                limit = (folder / "memory.max").read_text(encoding="ascii").strip()
                used = int((folder / "memory.current").read_text(encoding="ascii"))
                stated = (folder / "memory.stat").read_text(encoding="ascii").split()
            except (OSError, ValueError):
                continue
            if limit.isdigit():  # else "max"
                files = int(stated[stated.index("inactive_file") + 1]) if "inactive_file" in stated else 0
                yield max(0, int(limit) - used + files)  # the kernel frees inactive file pages when memory is needed


def own_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of tensors in memory of this process's own: without those in mapped safetensors files, each once."""
    ranges = list(mapped_ranges(".safetensors"))
    own = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    return sum(size for begin, size in own.items() if not any(first <= begin < end for first, end in ranges))


def mapped_ranges(ending: str) -> Iterator[tuple[int, int]]:
    """Yield the address ranges at which this process maps files whose names end with ``ending`` (Linux; none elsewhere)."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].rstrip().endswith(ending):
            begin, end = (int(number, 16) for number in fields[0].split("-"))
            yield begin, end


def _stated(file: str, name: str) -> int | None:
    """Return the bytes that Linux states for this process under a name; None on other systems."""
    try:
        lines = Path("/proc/self", file).read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def resident_memory() -> int:
    """Return the bytes of this process in memory, shared pages included."""
    import psutil

    return int(psutil.Process().memory_info().rss)
