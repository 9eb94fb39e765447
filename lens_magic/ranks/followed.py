"""Environment variables in which the other ranks follow rank 0.

They have the environment that MPI's daemon was started with. What a cell sets later would reach rank 0 alone, and the others
might take a GPU that is somebody else's.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

from ..errors import LensError
from .rank import Rank

_GPUS = "CUDA_VISIBLE_DEVICES"
_NAMES = (_GPUS, "LENS_FREE_MEMORY")

_shown: list[str | None] = []  # the GPUs that CUDA has read to be this process's, once it has begun


def stated() -> dict[str, str | None]:
    """Return what these variables are in this process; None for one that is not set."""
    return {name: os.environ.get(name) for name in _NAMES}


def follow(values: Mapping[str, str | None]) -> None:
    """Set these variables to what they are on rank 0."""
    note_gpus()
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def note_gpus() -> None:
    """Remember which GPUs CUDA has read to be this process's, as soon as it has begun."""
    if not _shown and _cuda_has_begun():
        _shown.append(os.environ.get(_GPUS))


def require_in_time(rank: Rank) -> None:
    """Refuse other GPUs than this rank can still have: CUDA reads the variable once, and the other ranks would have others.

    Raises:
        LensError: the variable has been changed since.
    """
    if rank.size > 1 and _shown and (now := os.environ.get(_GPUS)) != _shown[0]:
        raise LensError(
            f"{_GPUS} was changed from {_said(_shown[0])} to {_said(now)} when rank {rank.rank} already used CUDA, which reads "
            "it once; set it back, or change it in a fresh kernel before the first model is loaded"
        )


def _said(value: str | None) -> str:
    return "nothing" if value is None else repr(value)


def _cuda_has_begun() -> bool:
    """Whether CUDA's driver has been initialised in this process, by whomever; asking does not initialise it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:  # not even loaded
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 0)  # before, that it is not initialised
