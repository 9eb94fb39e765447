"""Functions that the tests run on the ranks: fail at a chosen moment, pause, count, work in small portions.

Imported in the ranks' processes (the tests put this folder on their path) and run there by ``Group.call``.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from typing import Any

from lens_magic.ranks import faults

_seen = Counter[str]()  # of this rank's process


def arm(rank: Any, plan: str) -> None:
    """Plan a fault, as ``LENS_FAULT`` would at the start of the ranks; an empty plan removes it."""
    os.environ[faults.VARIABLE] = plan
    rank._fault = faults.planned_for(rank.rank)
    del os.environ[faults.VARIABLE]


def watch(rank: Any, pause_at: tuple[str, int] | None = None, seconds: float = 0.0, once: bool = True) -> None:
    """Count events; at the n-th of a kind rank 0 says so in the notebook, and lets the test act for a while.

    Until it has interrupted, where that is `once`.
    """
    _seen.clear()

    def note(event: Any) -> None:
        _seen[event[0]] += 1
        if rank.rank == 0 and pause_at == (event[0], _seen[event[0]]):
            say_and_wait(rank, seconds, once)

    rank._fault = note


def say_and_wait(rank: Any, seconds: float, once: bool = True) -> None:
    from IPython.display import display

    display({"text/plain": "paused"}, raw=True)  # not printed: what is printed while a model loads is held back
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (once and rank.stop_requested):
        time.sleep(0.02)


def seen(rank: Any) -> dict[str, int]:
    """How many events of each kind this rank has come to since :func:`watch`."""
    return dict(_seen)


def pause_in_prefill(rank: Any, seconds: float) -> None:
    """On rank 0 the next forward pass says that it is under way, and takes longer."""
    if rank.rank != 0:
        return

    def hook(module: Any, arguments: Any) -> None:
        handle.remove()
        say_and_wait(rank, seconds)

    from lens_magic.model.load import loaded_on

    handle = loaded_on(rank).backbone.layers[1].register_forward_pre_hook(hook)


def project_in_portions(rank: Any, size: int) -> None:
    """How many bytes of logits a projection makes at a time."""
    from lens_magic.lens import decode

    decode._BLOCK_BYTES["cpu"] = size


def heavy(rank: Any) -> list[str]:
    """Of what takes long to import, what this rank has imported."""
    return [name for name in ("torch", "transformers", "deepspeed", "pandas", "xarray", "matplotlib") if name in sys.modules]
