"""A pretended GPU: runs the package's GPU code with real numbers on a machine without one.

Tensors report the device ``cuda:0`` and keep their values in the host's memory. What fails on a GPU fails here too: tensors
of two devices in one operation, and, while a CUDA graph is recorded, whatever waits for the device or copies from pageable
memory. Copies to pinned memory arrive only when somebody waits. Recording runs nothing, and tensors made during it are NaN
until a replay. Ranks exchange only tensors on the pretended GPU, in graphs too, as with NCCL. It does not simulate speed,
memory or the kernels' own arithmetic.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import torch

from lens_magic.lens import decode

from . import card, cuda, exchanges, graphs, kernels

_undo = contextlib.ExitStack()


def begin(rank: Any, with_nccl: bool = True, with_triton: bool = True) -> None:
    """From here on this rank has a GPU, of its own where ranks talk by NCCL; before it connects to the others."""
    _let_deepspeed_look_again()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) asks the modes, too
    _undo.callback(torch._C._set_only_lift_cpu_tensors, False)
    stand_ins = cuda.stand_ins()
    stand_ins += exchanges.stand_ins(rank) if with_nccl and rank.size > 1 else []
    stand_ins += kernels.stand_ins() if with_triton else []
    for place, name, value in stand_ins:
        _set(place, name, value)
    inner = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with card.Operations():  # modes are a thread's own
            inner(thread)

    _set(threading.Thread, "run", run)
    _undo.enter_context(card.Operations())


def end() -> None:
    """There is none any more; the other ranks' processes have ended."""
    _undo.close()
    card.forget()
    graphs.made.clear()


def waits(rank: Any) -> int:
    """How often this rank has waited for its GPU since it was asked last."""
    count = len(card.waits)
    card.waits.clear()
    return count


def cut_into_blocks_of(rank: Any, cells: int) -> None:
    """Have so many cells projected at a time, at most."""
    _set(decode, "_BLOCK_CELLS", {"cuda": cells})


def recorded(rank: Any) -> tuple[list[int], list[str]]:
    """How often each graph was replayed since this was asked last, and constants of the host's that went into graphs."""
    found = [graph.replays for graph in graphs.made], [name for graph in graphs.made for name in graph.constants]
    graphs.made.clear()
    return found


def sizes(rank: Any) -> list[int]:
    """How many operations each graph has that was recorded since one was asked for last."""
    found = [graph.size for graph in graphs.made]
    graphs.made.clear()
    return found


def _let_deepspeed_look_again() -> None:
    """It decides once in a process what it runs on."""
    from deepspeed.accelerator import real_accelerator

    decided = os.environ.pop("DS_ACCELERATOR", None)
    if decided is not None:
        _undo.callback(os.environ.__setitem__, "DS_ACCELERATOR", decided)
    _set(real_accelerator, "ds_accelerator", None)


def _set(place: Any, name: str, value: Any) -> None:
    missing = object()
    before = vars(place).get(name, missing)
    setattr(place, name, value)
    _undo.callback(*((delattr, place, name) if before is missing else (setattr, place, name, before)))
