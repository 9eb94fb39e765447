"""Captured states: those at chosen sites and layers for every position, divided over the ranks.

Under tensor parallelism the states at a site are the same on every rank, so each (site, layer) is kept by one rank only.
Each of n ranks holds 1/n of the bytes, and its forward pass is slowed by its own share of the copies only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..model.load import Loaded
from ..model.sites import Key, Visit, Visitor, Window
from ..ranks.memory import give_back_pinned
from ..ranks.rank import Rank
from ..ranks.store import Slot


@dataclass(frozen=True)
class CapturePlan:
    """What to capture; the same on every rank.

    Attributes:
        sites, layers: every combination of these is captured.
        first: the first captured column.
        rows: number of columns to make room for.
        batch: number of sequences.
        dtype: dtype of the kept states; None for the model's.
        offload: keep the states in host memory.
    """

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    first: int
    rows: int
    batch: int = 1
    dtype: torch.dtype | None = None
    offload: bool = False

    @property
    def keys(self) -> list[Key]:
        """All requested (site, layer) pairs."""
        return [(site, layer) for layer in self.layers for site in self.sites]


class Trajectories(Visitor):
    """This rank's share of the captured states, in one preallocated buffer.

    The last layer's output is always kept, requested or not: the model's own distribution is computed from it.
    """

    def __init__(self, rank: Rank, loaded: Loaded, plan: CapturePlan) -> None:
        self.plan = plan
        self.output: Key = ("resid_post", loaded.layers - 1)
        self.keys = list(dict.fromkeys([*plan.keys, self.output]))
        self.ranks = rank.size
        self.device = loaded.device
        owned = self.keys[rank.rank :: rank.size]
        dtype = plan.dtype or loaded.dtype
        step = (len(owned), plan.batch, loaded.width)
        on_host = plan.offload and loaded.device.type != "cpu"
        place = {"device": torch.device("cpu"), "pin_memory": True} if on_host else {"device": loaded.device}
        if on_host:
            give_back_pinned()  # left by the previous run, whose size may differ
        self.buffer = torch.empty((plan.rows, *step), dtype=dtype, **place)  # [rows, owned, batch, d]
        self._step = torch.empty(step, dtype=loaded.dtype, device=loaded.device)  # one step's states, until the step has ended
        self._place = {key: place for place, key in enumerate(owned)}
        self._seen: dict[int, torch.Tensor] = {}  # this step's states by place, until all are there

    @property
    def nbytes(self) -> int:
        """Bytes of captured states on this rank."""
        return self.buffer.nbytes

    def owner(self, key: Key) -> int:
        """Return the rank that keeps a (site, layer)."""
        return self.keys.index(key) % self.ranks

    def visits(self) -> Mapping[Key, Visit]:
        """Return the visits to attach to the model on this rank, by (site, layer)."""
        return {key: self._writer(place) for key, place in self._place.items()}

    def prepare(self, window: Window) -> None:
        """Discard what an abandoned step has left."""
        self._seen.clear()

    def finish(self, window: Window) -> None:
        """Store the states of a single-token step."""
        row = window.start - self.plan.first
        if window.length == 1 and self._place and 0 <= row < self.plan.rows:
            self.buffer[row].copy_(self._step, non_blocking=True)  # if to the host, without waiting for the copy

    def _writer(self, place: int) -> Visit:
        first, last = self.plan.first, self.plan.first + self.plan.rows

        seen, owned, step = self._seen, len(self._place), self._step.view(-1, 1, self._step.shape[-1])

        def write(states: torch.Tensor, window: Window) -> None:
            # states: [batch, length, d]
            if window.length == 1:  # once all are there, one operation for the token instead of one per site and layer
                seen[place] = states
                if len(seen) == owned:
                    torch.cat([seen[at] for at in range(owned)], out=step)
                    seen.clear()
                return
            begin, end = max(window.start, first), min(window.start + window.length, last)
            if begin < end:  # copied immediately: a view held until the forward ends would keep the whole prefill alive
                kept = states[:, begin - window.start : end - window.start]
                self.buffer[begin - first : end - first, place].copy_(kept.transpose(0, 1))

        return write

    def mine(self, key: Key, begin: int, end: int, sequence: int = 0) -> torch.Tensor | None:
        """Return rows ``begin`` … ``end − 1`` of a (site, layer), ``[end − begin, d]``; None if another rank keeps it."""
        place = self._place.get(key)
        if place is None:
            return None
        rows = self.buffer[begin:end, place, sequence]
        if rows.device != self.device:
            torch.cuda.synchronize(self.device)  # wait for the copies to the host
        return rows.to(self.device)

    def share(self, rank: Rank, key: Key, begin: int, end: int, sequence: int = 0) -> torch.Tensor:
        """Return the same rows on every rank, ``[end − begin, d]``. Collective."""
        rows = self.mine(key, begin, end, sequence)
        if rank.size == 1 and rows is not None:
            return rows
        if rows is None:
            rows = self.empty((end - begin, self.buffer.shape[-1]))
        return rank.all_gather(rows)[self.owner(key)]

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return zeros of the kept states' dtype, on the model's device."""
        return torch.zeros(shape, dtype=self.buffer.dtype, device=self.device)


NEWEST = Slot[tuple[str, Trajectories]]("trajectories")
"""The newest run's id, and its states."""


def gather(rank: Rank, run_id: str, site: str, layers: Sequence[int], rows: Sequence[int]) -> torch.Tensor | None:
    """Return a run's captured states on rank 0, ``[layers, rows, d]``; None elsewhere, or if they are gone. Collective.

    Args:
        run_id: the run's id; in a batch, the batch's id, a colon and the sequence's number.
        rows: counted from the first captured column.
    """
    kept = rank.store.get(NEWEST)
    batch_id, _, number = run_id.partition(":")
    if kept is None or kept[0] != batch_id:
        return None
    trajectories, sequence = kept[1], int(number or 0)
    chosen = torch.tensor(list(rows), dtype=torch.long)
    gathered = [trajectories.share(rank, (site, layer), 0, trajectories.plan.rows, sequence) for layer in layers]
    if rank.rank != 0:
        return None
    return torch.stack([states[chosen.to(states.device)].cpu() for states in gathered])
