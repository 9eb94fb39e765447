"""Exchange of tensors between ranks with a pretended GPU each, as with NCCL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lens_magic.ranks import collectives
from lens_magic.ranks.collectives import BACKEND, MPIProcessGroup
from lens_magic.ranks.rank import Rank

from . import graphs
from .card import OnCard


class Kernels(MPIProcessGroup):
    """Takes tensors on the pretended GPU only, and can be recorded."""

    def reduce_in_place(self, tensor: Any, operation: Any) -> None:
        values = _there(tensor)
        graphs.write_to(values, lambda: super(Kernels, self).reduce_in_place(values, operation))

    def broadcast(self, tensors: Sequence[Any], opts: Any = None) -> Any:  # type: ignore[override]
        for tensor in tensors:
            values = _there(tensor)
            graphs.write_to(values, lambda values=values: super(Kernels, self).broadcast([values], opts))  # type: ignore[misc]
        return collectives._Done(tensors)

    def all_gather_single(self, output: Any, tensor: Any, opts: Any = None) -> Any:
        into, values = _there(output), _there(tensor)
        graphs.write_to(into, lambda: super(Kernels, self).all_gather_single(into, values, opts))
        return collectives._Done(output)


def _there(tensor: Any) -> Any:
    if not isinstance(tensor, OnCard):
        raise RuntimeError("NCCL takes no tensor of the host's")
    if not tensor.held.is_contiguous():
        raise RuntimeError("NCCL takes contiguous tensors alone")
    return tensor.held


class _NoShortWay(list[Any]):
    """A rank's process groups as they are with NCCL: none that could be asked past torch.distributed."""

    def append(self, _: Any) -> None:
        pass


def stand_ins(rank: Rank) -> list[tuple[Any, str, Any]]:
    """(where, name, what is to be there)."""
    return [
        (rank, "process_groups", _NoShortWay()),
        (collectives, "MPIProcessGroup", Kernels),
        (collectives, "backend_for", lambda _: BACKEND),
        (collectives.dist, "get_backend", lambda *_: "nccl"),
    ]
