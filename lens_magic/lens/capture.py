"""Trajectories: the states at chosen sites and layers for every position, a share on each rank.

Under tensor parallelism the states at a site are the same on every rank, so each (site, layer) is kept by one rank alone:
n ranks hold 1/n of the bytes each, and a rank's forward pass is slowed by its own share of the copies only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..model.load import Loaded
from ..model.sites import Visit, Window
from ..ranks.rank import Rank

Key = tuple[str, int]
"""(site, layer)"""


@dataclass(frozen=True)
class Plan:
    """What is to be captured: the same on every rank.

    Attributes:
        sites, layers: the cells asked for; every combination is captured.
        first: sequence index of the first captured state.
        rows: how many positions there is room for.
    """

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    first: int
    rows: int

    @property
    def keys(self) -> list[Key]:
        """All (site, layer) asked for."""
        return [(site, layer) for layer in self.layers for site in self.sites]


class Trajectories:
    """This rank's share of the captured states, in one preallocated buffer.

    Besides what was asked for, the last layer's output is always kept: the model's own distribution is made from it.
    """

    def __init__(self, rank: Rank, loaded: Loaded, plan: Plan) -> None:
        self.plan = plan
        self.output: Key = ("resid_post", loaded.layers - 1)
        self.keys = list(dict.fromkeys([*plan.keys, self.output]))
        self.ranks = rank.size
        owned = self.keys[rank.rank :: rank.size]
        shape = (plan.rows, len(owned), loaded.width)
        self.buffer = torch.empty(shape, dtype=loaded.dtype, device=loaded.device)  # [rows, owned, d]
        self._place = {key: place for place, key in enumerate(owned)}
        self._step: dict[int, torch.Tensor] = {}  # this step's states by place, until all are there

    @property
    def nbytes(self) -> int:
        """Bytes of captured states on this rank."""
        return self.buffer.nbytes

    def owner(self, key: Key) -> int:
        """The rank that keeps a (site, layer)."""
        return self.keys.index(key) % self.ranks

    def visits(self) -> Mapping[Key, Visit]:
        """What is to be attached to the model on this rank."""
        return {key: self._writer(place) for key, place in self._place.items()}

    def _writer(self, place: int) -> Visit:
        first, last = self.plan.first, self.plan.first + self.plan.rows

        def write(states: torch.Tensor, window: Window) -> None:
            # states: [1, length, d]
            if window.length == 1:
                if first <= window.start < last:
                    self._write_step(place, states, window.start - first)
                return
            begin, end = max(window.start, first), min(window.start + window.length, last)
            if begin < end:  # copied at once: held until the forward ends, it would keep the whole prefill alive
                self.buffer[begin - first : end - first, place].copy_(states[0, begin - window.start : end - window.start])

        return write

    def _write_step(self, place: int, states: torch.Tensor, row: int) -> None:
        """Write a step's states all together: one operation a token instead of one a site and layer."""
        self._step[place] = states[0]  # [1, d]
        if len(self._step) == len(self._place):
            torch.cat([self._step[at] for at in range(len(self._step))], out=self.buffer[row])
            self._step.clear()

    def mine(self, key: Key, begin: int, end: int) -> torch.Tensor | None:
        """Rows ``begin`` … ``end − 1`` of a (site, layer), ``[end − begin, d]``, or None where another rank keeps it."""
        place = self._place.get(key)
        return None if place is None else self.buffer[begin:end, place]

    def share(self, rank: Rank, key: Key, begin: int, end: int) -> torch.Tensor:
        """The same rows on every rank, ``[end − begin, d]``; collective."""
        rows = self.mine(key, begin, end)
        if rank.size == 1 and rows is not None:
            return rows
        if rows is None:
            rows = self.buffer.new_zeros((end - begin, self.buffer.shape[2]))
        return rank.all_gather(rows)[self.owner(key)]


def gather(rank: Rank, run_id: str, site: str, layers: Sequence[int], rows: Sequence[int]) -> torch.Tensor | None:
    """The captured states of a run on rank 0: ``[layers, rows, d]``; None where that run's states are gone; collective."""
    kept: tuple[str, Trajectories] | None = rank.store.get("trajectories")
    if kept is None or kept[0] != run_id:
        return None
    trajectories = kept[1]
    chosen = torch.tensor(list(rows), dtype=torch.long)
    gathered = [trajectories.share(rank, (site, layer), 0, trajectories.plan.rows) for layer in layers]
    if rank.rank != 0:
        return None
    return torch.stack([states[chosen.to(states.device)].cpu() for states in gathered])
