"""What a function sees of the group while it runs on a rank."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from . import faults
from .store import Store

if TYPE_CHECKING:
    import torch

    from .board import Board
    from .collectives import MPIProcessGroup


_TEXT_BYTES = 4096  # the longest a path can be


def usable_cores() -> set[int]:
    """Return the processors that this process may run on: a batch scheduler, a container or a launcher may allow it some."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


class Aborted(Exception):
    """Another rank failed; what this rank was computing has been given up."""


class Rank:
    """One rank's place in the group, handed as first argument to every function the group calls.

    Attributes:
        rank: number of this rank, 0 … size − 1.
        size: number of ranks.
        cores: how many of its host's processors this rank has: one that n ranks may use counts 1/n.
        store: what functions keep on this rank between calls.
        on_event: called with what functions emit; set on rank 0 during a call.
    """

    def __init__(self, communicator: Any = None, aborted: threading.Event | None = None) -> None:
        self._parent = communicator
        self._communicator: Any = communicator.Dup() if communicator is not None else None
        self.rank: int = communicator.rank if communicator is not None else 0
        self.size: int = communicator.size if communicator is not None else 1
        self.store = Store()
        self.local_rank, self.local_size, self.cores = self._locate()
        self._stop = threading.Event()
        self.aborted = aborted or threading.Event()  # set, from another thread, once another rank has failed
        self._pending: Any = None  # the MPI operation being waited for
        self._abandoned: list[Any] = []
        self._renewing = False
        self.on_event: Callable[[Any], None] | None = None
        self._fault = faults.planned_for(self.rank)
        self.process_groups: list[MPIProcessGroup] = []
        self.board: Board | None = None
        self.gpus: list[str] = []  # every rank's, once they have been compared

    def _locate(self) -> tuple[int, int, Fraction]:
        """Return this rank's number among the ranks of its host, how many those are, and its share of the processors."""
        own = usable_cores()
        if self._parent is None:
            return 0, 1, Fraction(len(own))
        from mpi4py import MPI

        local = self._parent.Split_type(MPI.COMM_TYPE_SHARED)
        users = Counter(core for usable in local.allgather(own) for core in usable)
        place = (local.rank, local.size, sum((Fraction(1, users[core]) for core in own), Fraction()))
        local.Free()
        return place

    @property
    def communicator(self) -> Any:
        """The MPI communicator that numbers travel over (None for a single rank)."""
        return self._communicator

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return every rank's tensor (same shape on all), stacked: ``[size, *shape]``."""
        if self.size == 1:
            return tensor.unsqueeze(0)
        if self.process_groups:  # not through torch.distributed, which takes longer than the exchange
            return self.process_groups[0].gathered(tensor).to(tensor.device, tensor.dtype)
        import torch.distributed as dist

        out = tensor.new_empty((self.size, *tensor.shape))
        # Into one tensor: several would be gathered elsewhere first, and copied.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name in older releases
        gather(out, tensor.contiguous())
        return out

    def all_reduce(self, tensor: torch.Tensor, operation: str = "sum") -> torch.Tensor:
        """Reduce in place over all ranks ("sum", "max" or "min") and return the tensor."""
        if self.size == 1:
            return tensor
        import torch.distributed as dist

        kind = getattr(dist.ReduceOp, operation.upper())
        if self.process_groups:  # as above
            self.process_groups[0].reduce_in_place(tensor, kind)
        else:
            dist.all_reduce(tensor, kind)
        return tensor

    @property
    def stop_requested(self) -> bool:
        """Whether the user has interrupted; only rank 0 knows, so ranks must agree before acting on it."""
        return self._stop.is_set()

    def agree_to_stop(self) -> bool:
        """Whether rank 0 has been interrupted. A collective: every rank calls it at the same point."""
        if self.size == 1:
            return self.stop_requested
        if self.board is not None:
            return self.board.told(self.stop_requested)
        flag = bytearray([self.stop_requested])
        self.wait_for(self._communicator.Ibcast(flag, root=0))
        return bool(flag[0])

    def texts(self, own: str) -> list[str]:
        """Return every rank's short text. Collective; unlike MPI's exchanges of objects, it ends if a rank has failed."""
        mine, all_of_them = bytearray(own.encode().ljust(_TEXT_BYTES, b"\0")), bytearray(_TEXT_BYTES * self.size)
        self.wait_for(self._communicator.Iallgather(mine, all_of_them))
        starts = range(0, len(all_of_them), _TEXT_BYTES)
        return [all_of_them[start : start + _TEXT_BYTES].rstrip(b"\0").decode() for start in starts]

    def wait_for(self, request: Any) -> None:
        """Wait for an MPI operation to complete, unless another rank fails meanwhile.

        The operation is then abandoned, with its buffers and its communicator: revoking the communicator, which MPI offers
        for this, misses ranks that begin to wait just then, and breaks operations that are running.

        Raises:
            Aborted: another rank has failed.
        """
        self._pending = request
        while not request.Test():
            if self.aborted.is_set() and not self._renewing:
                raise Aborted
            os.sched_yield()  # with more ranks than cores, the rank waited for may need this core
        self._pending = None

    def share_memory(self) -> None:
        """Open a new board, shared with the other ranks, if all are on one host. Collective."""
        from .board import Board

        self.board = Board.open(self)

    def give_up_memory(self) -> None:
        """Let go of the board after the last exchange: references to this rank would otherwise keep its memory mapped."""
        self.board = None
        for group in self.process_groups:
            group.use(self._communicator, None)
        self.process_groups.clear()

    def request_stop(self) -> None:
        """Ask the running functions to stop; on rank 0, from any thread."""
        self._stop.set()

    def acknowledge_stop(self) -> None:
        """Forget a stop that was acted on, or that came when nothing ran, so that what follows can be interrupted again."""
        self._stop.clear()

    def emit(self, event: Any) -> None:
        """Report progress to the caller on rank 0; does nothing on other ranks."""
        if self._fault is not None:
            self._fault(event)
        if self.on_event is not None:
            self.on_event(event)

    def renew(self) -> None:
        """Replace a communicator that was given up. A collective over all ranks.

        Rank 0 may be through with it, and the next call have failed there, while others still wait for each other: what they
        are told then is of that call, and stays until they run it. If a rank dies, only rank 0 is told, and ends the others.
        """
        self.aborted.clear()
        self._renewing = self.rank != 0
        try:
            self._meet_again()
        finally:
            self._renewing = False

    def _meet_again(self) -> None:
        self.gpus = []  # some ranks may have been stopped before they knew of the others': all compare them again, or none does
        if self._parent is None:
            return
        if self._pending is not None:  # MPI may still write to the buffer it was given; the request keeps that alive
            self._abandoned.append(self._pending)
            self._pending = None
        from mpi4py import MPI

        self._communicator = self._parent.Dup()
        self._communicator.Set_errhandler(MPI.ERRORS_RETURN)
        if self.board is not None:
            self.share_memory()
        for group in self.process_groups:
            group.use(self._communicator, self.board)
