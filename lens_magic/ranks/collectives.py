"""``torch.distributed`` over MPI: the backend for ranks without a GPU of their own.

DeepSpeed's layers and the lens call ``torch.distributed``; on GPUs that is NCCL. Here its few operations are mapped to
shared memory if they are small and all ranks are on one host (:mod:`.board`), else to MPI. On shared processors both are
over ten times as fast as gloo (docs/ranks.md has the numbers), and a dead rank is an exception within milliseconds. CUDA
tensors are staged through host memory, so that several ranks can share one GPU, which NCCL refuses.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from ..errors import LensError
from .board import CAPACITY, Board
from .environment import runtime_folder
from .recording import do

if TYPE_CHECKING:
    from .rank import Rank

BACKEND = "lens_mpi"
_MEETING_S = 60  # for which a rank tries to reach rank 0's host


class _Done(dist._Work):  # type: ignore[name-defined]
    """The handle of an operation that had finished when its call returned."""

    def __init__(self, result: Any = None) -> None:
        super().__init__()
        self._future: torch.futures.Future[Any] = torch.futures.Future()
        self._future.set_result(result)

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    def get_future(self) -> Any:
        return self._future


def _host(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in contiguous host memory, of a dtype MPI can add; the same memory if it is that already."""
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    elif tensor.dtype == torch.bool:
        tensor = tensor.to(torch.uint8)
    return tensor.detach().cpu().contiguous()


class MPIProcessGroup(dist.ProcessGroup):
    """The part of ``ProcessGroup`` that tensor-parallel inference uses, over one MPI communicator."""

    def __init__(self, communicator: Any, wait_for: Callable[[Any], None], board: Board | None = None) -> None:
        super().__init__(communicator.rank, communicator.size)  # type: ignore[call-arg]
        from mpi4py import MPI

        self._mpi = MPI
        self._communicator = communicator
        self._wait_for = wait_for
        self._board = board
        self._operations = {
            dist.ReduceOp.SUM: (MPI.SUM, np.add),
            dist.ReduceOp.MAX: (MPI.MAX, np.maximum),
            dist.ReduceOp.MIN: (MPI.MIN, np.minimum),
            dist.ReduceOp.PRODUCT: (MPI.PROD, np.multiply),
        }

    def use(self, communicator: Any, board: Board | None) -> None:
        """Switch to another communicator and board of the same ranks, after the previous ones were given up."""
        self._communicator, self._board = communicator, board

    def _board_for(self, values: torch.Tensor) -> Board | None:
        return self._board if values.nbytes <= CAPACITY else None

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        """The name it is registered under."""
        return BACKEND

    def reduce_in_place(self, tensor: torch.Tensor, operation: Any) -> None:
        """Reduce one tensor over all ranks."""
        values = _host(tensor)
        over_mpi, here = self._operations[operation]
        array, board = values.numpy(), self._board_for(values)
        if board:
            do(lambda: board.reduce(array, here))
        else:
            do(lambda: self._wait_for(self._communicator.Iallreduce(self._mpi.IN_PLACE, array, over_mpi)))
        if values.data_ptr() != tensor.data_ptr():
            tensor.copy_(values)

    def allreduce(self, tensors: Any, opts: Any = None) -> Any:  # type: ignore[override]
        """Reduce in place."""
        for tensor in tensors:
            self.reduce_in_place(tensor, opts.reduceOp.op if hasattr(opts.reduceOp, "op") else opts.reduceOp)
        return _Done(tensors)

    def broadcast(self, tensors: Any, opts: Any = None) -> Any:  # type: ignore[override]
        """Overwrite with the root rank's values."""
        for tensor in tensors:
            values = _host(tensor)
            if board := self._board_for(values):
                board.broadcast(values.numpy(), opts.rootRank)
            else:
                self._wait_for(self._communicator.Ibcast(values.numpy(), root=opts.rootRank))
            if values.data_ptr() != tensor.data_ptr():
                tensor.copy_(values)
        return _Done(tensors)

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return every rank's tensor, ``[size, *shape]``, in host memory."""
        values = _host(tensor)
        gathered = values.new_empty((self._communicator.size, *values.shape))
        array, into, board = values.numpy(), gathered.numpy(), self._board_for(values)
        if board:
            do(lambda: board.gather(array, into))
        else:
            do(lambda: self._wait_for(self._communicator.Iallgather(array, into)))
        return gathered

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        """Collect every rank's tensors."""
        for into, tensor in zip(outputs, inputs, strict=True):
            for place, part in zip(into, self.gathered(tensor), strict=True):
                place.copy_(part)
        return _Done(outputs)

    def all_gather_single(self, output: Any, tensor: Any, opts: Any = None) -> Any:
        """Collect every rank's tensor in a single one."""
        output.copy_(self.gathered(tensor).view_as(output))
        return _Done(output)

    def barrier(self, opts: Any = None) -> Any:
        """Wait for all ranks."""
        self._wait_for(self._communicator.Ibarrier())
        return _Done()


_stores: list[Any] = []  # the store through which the ranks of the connected group found each other
_connected: list[Rank] = []  # the rank of the group that is connected now; torch creates process groups by callback
_threads_before: list[int] = []  # torch's thread count before connecting, which lowers it as ranks share the processor


def _create(store: Any, number: int, size: int, timeout: timedelta) -> MPIProcessGroup:
    """Create a process group of the backend; called by torch."""
    from mpi4py import MPI

    (rank,) = _connected
    if size == 1:
        return MPIProcessGroup(MPI.COMM_SELF, rank.wait_for)
    if size != rank.size:
        raise NotImplementedError(f"a process group of {size} of the {rank.size} ranks")
    group = MPIProcessGroup(rank.communicator, rank.wait_for, rank.board)
    rank.process_groups.append(group)
    return group


def compare_gpus(rank: Rank) -> list[str]:
    """Return every rank's GPU, by host and UUID, "" where there is none. Collective the first time, and after a failure.

    Their numbers would not tell: where a batch scheduler shows each rank one GPU, all of them are number 0.
    """
    if not rank.gpus:
        device = device_for(rank)
        own = f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else ""
        rank.gpus = rank.texts(own) if rank.size > 1 else [own]
    return rank.gpus


def backend_for(rank: Rank) -> str:
    """Return "nccl" if every rank has a GPU to itself, on whichever host it is, else the MPI backend. Collective."""
    gpus = compare_gpus(rank)
    return "nccl" if all(gpus) and len(set(gpus)) == rank.size else BACKEND


def device_for(rank: Rank) -> torch.device:
    """Return this rank's device: its own GPU, a GPU shared with others if there are fewer than ranks, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", rank.local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def require_free(rank: Rank) -> None:
    """Check that the ranks can connect: ``torch.distributed`` serves one group per process at a time.

    Raises:
        LensError: this process uses it for something else, or has ended the group that connected these ranks.
    """
    if _connected == [rank] and _stores and not dist.is_initialized():  # the other ranks would not connect again
        raise LensError("the ranks' torch.distributed was ended by code of yours; `%lens restart` starts new ranks")
    if rank.size > 1 and dist.is_initialized() and _connected != [rank]:
        raise LensError(
            f"torch.distributed is in use in this process already, by code of yours or by other ranks, and {rank.size} ranks "
            "need it; torch.distributed.destroy_process_group() ends that"
        )


def connect(rank: Rank) -> None:
    """Initialise ``torch.distributed``, which DeepSpeed uses too, over the group's ranks (if several), once. Collective."""
    if rank.size == 1 or dist.is_initialized():
        return
    _connected[:] = [rank]  # from here on there is something to undo
    device = device_for(rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Ranks share the processor: if every rank used all cores, each would wait for the others' threads.
        if not _threads_before:  # otherwise connecting failed the last time
            _threads_before.append(torch.get_num_threads())
        torch.set_num_threads(min(_threads_before[0], max(1, int(rank.cores))))
    backend = backend_for(rank)
    rank.share_memory()
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, _create, devices=["cpu", "cuda"])
    store = _meet(rank)
    _stores.append(store)
    if backend == "nccl":
        # The group gives up a rank that waits too long; NCCL's own watchdogs would end the user's process.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
        # With expandable segments in torch's allocator a graph of collectives hangs: NCCL takes a buffer for one allocation.
        os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
        if rank.local_size == rank.size:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    dist.init_process_group(backend, store=store, rank=rank.rank, world_size=rank.size)


def _meet(rank: Rank) -> Any:
    """Return the store through which the ranks find each other. Collective.

    On one host that is a file: torch's TCP store listens on every interface of the machine, as only several hosts need.
    """
    if rank.local_size == rank.size:
        # In rank 0's folder, since in a launched world every rank has one of its own.
        path = rank.texts(str(runtime_folder() / f"store-{secrets.token_hex(8)}"))[0]
        return dist.FileStore(path, rank.size)  # type: ignore[attr-defined]
    host, limit = socket.gethostname(), timedelta(seconds=_MEETING_S)
    opened: Any = dist.TCPStore  # type: ignore[attr-defined]
    own = opened(host, 0, rank.size, True, limit, wait_for_workers=False) if rank.rank == 0 else None
    address = rank.texts(f"{host} {own.port}" if own is not None else "")[0].split()
    return opened(address[0], int(address[1]), rank.size, False, limit) if own is None else own


def waits_in_kernels() -> bool:
    """Whether this process waits for other ranks in NCCL's kernels, where it cannot notice that one of them has failed."""
    return bool(_connected) and dist.is_initialized() and dist.get_backend() == "nccl"


def abort_kernels() -> None:
    """End the kernels that wait for other ranks, if there are any; these ranks cannot exchange anything after that."""
    dist.distributed_c10d._abort_process_group()


def disconnect() -> None:
    """Reset ``torch.distributed`` and DeepSpeed's state of it for the next group; do nothing if we did not connect."""
    if not _connected:
        return
    if waits_in_kernels():
        abort_kernels()  # NCCL ends cleanly only on all ranks together, and the others are gone by now
    elif dist.is_initialized():
        dist.destroy_process_group()
    _connected.pop().give_up_memory()
    while _stores:  # a file remains if not every rank has closed it cleanly
        if path := getattr(_stores.pop(), "path", None):
            Path(path).unlink(missing_ok=True)
    while _threads_before:
        torch.set_num_threads(_threads_before.pop())
    if deepspeed_comm := sys.modules.get("deepspeed.comm.comm"):
        deepspeed_comm.cdb = None  # type: ignore[attr-defined]
    if engine := sys.modules.get("deepspeed.inference.engine"):
        # A class attribute; left set, the next init_inference uses the dead group.
        engine.InferenceEngine.inference_mp_group = None
