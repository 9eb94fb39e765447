"""The memory that is free on each rank, and that would be on ranks that are not there yet."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .ranks.rank import Rank


@dataclass(frozen=True)
class Room:
    """The free memory of one rank.

    Attributes:
        device: "cpu", or "cuda:0" and so on.
        free: bytes free on the device.
        host: bytes free in the host's memory, this rank's share.
        model: bytes of the model that is loaded there now, which are freed once another one has replaced it.
    """

    device: str
    free: int
    host: int
    model: int = 0

    @property
    def kind(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]


def rooms_here(ranks: int, before: Sequence[Room] = ()) -> list[Room]:
    """Return the free memory that each of a number of ranks on this host would have, before they are started.

    Args:
        before: the current ranks, which will end; their model's memory is divided among the new rooms as ``model``.
    """
    import torch

    from .ranks.memory import free_on_gpu, host_memory, stated_memory

    host, stated = host_memory() // ranks, stated_memory()
    if not torch.cuda.is_available():
        model = sum(room.model for room in before) // ranks
        return [Room("cpu", host if stated is None else stated, host, model)] * ranks
    devices = torch.cuda.device_count()
    free = [free_on_gpu(device) // len(range(device, ranks, devices)) for device in range(min(devices, ranks))]
    found = []
    for rank in range(ranks):
        device = rank % devices
        model = sum(room.model for room in before if room.device == f"cuda:{device}") // len(range(device, ranks, devices))
        found.append(Room(f"cuda:{device}", free[device] if stated is None else stated, host, model))
    return found


def device_of(rank: Rank) -> torch.device:
    """Return the device that this rank computes on: its model's, as one attached from memory may be on any; else its own."""
    from .ranks.collectives import device_for

    if len(rank.store):  # else there is no model, and what a model takes is not imported to find that out
        from .model.load import MODEL

        if (loaded := rank.store.get(MODEL)) is not None:
            return loaded.device
    return device_for(rank)


def room_of_rank(rank: Rank, drops: bool = False) -> Room:
    """Return this rank's free memory. Collective the first time.

    Args:
        drops: count the last run's states and lens as free.
    """
    from .lens.capture import NEWEST
    from .lens.projector import bytes_held
    from .model.load import MODEL
    from .ranks.collectives import compare_gpus
    from .ranks.memory import free_memory, host_memory, own_bytes, pinned_bytes

    compare_gpus(rank)
    loaded, device = rank.store.get(MODEL), device_of(rank)
    kept = rank.store.get(NEWEST) if drops else None
    here = kept is not None and kept[1].buffer.device.type == device.type
    dropped = kept[1].nbytes if kept is not None and here else 0
    unpinned = pinned_bytes(kept[1].nbytes) if kept is not None and not here else 0
    if drops:
        dropped += bytes_held(rank)
    own = own_bytes(loaded.model.parameters()) if loaded is not None else 0
    return Room(str(device), free_memory(rank, device) + dropped, host_memory() // rank.local_size + unpinned, own)


def spread(rooms: Sequence[Room], ranks: int) -> list[Room]:
    """Return the rooms of another number of ranks, each with its share of the host, and a GPU of its own if there are any."""
    if ranks == len(rooms):
        return list(rooms)
    first = replace(rooms[0], host=rooms[0].host * len(rooms) // ranks)
    if first.kind != "cpu":
        return [replace(first, device=f"cuda:{rank}") for rank in range(ranks)]
    return [replace(first, free=first.free * len(rooms) // ranks)] * ranks


def describe_rank(rank: Rank) -> dict[str, Any]:
    """Return what ``%lens status`` says of a rank; memory in bytes."""
    from .ranks.memory import free_memory, host_memory, resident_memory, used_memory

    entry: dict[str, Any] = {"rank": rank.rank, "pid": os.getpid(), "device": "cpu"}
    if "torch" not in sys.modules:  # nothing was loaded yet, and asking is no reason to import torch
        return {**entry, "memory": resident_memory(), "free": host_memory() // rank.local_size}
    device = device_of(rank)
    return {**entry, "device": str(device), "memory": used_memory(device), "free": free_memory(rank, device)}
