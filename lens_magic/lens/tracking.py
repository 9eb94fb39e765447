"""Following tokens through all cells: their logit, probability and rank, whatever the rank is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..model.head import HeadShard, first_largest
from ..model.sites import Key
from ..ranks.rank import Rank

NOBODY = -1
"""Fills up positions that have fewer tokens to follow than others."""


@dataclass(frozen=True)
class Tracked:
    """The tokens followed at some positions; the same on every rank.

    Attributes:
        ids: ``[positions, m]``, vocabulary indices or :data:`NOBODY`.
    """

    ids: torch.Tensor

    @classmethod
    def chosen(cls, ids: Sequence[int], positions: int, device: torch.device) -> Tracked:
        """Follow the same tokens (or none) at every position."""
        return cls(torch.tensor(ids, device=device, dtype=torch.long).expand(positions, len(ids)))

    def __bool__(self) -> bool:
        return self.ids.shape[1] > 0

    @classmethod
    def ranked_first(
        cls,
        rank: Rank,
        head: HeadShard,
        keys: Sequence[Key],
        logits: Sequence[torch.Tensor],
        positions: int,
        most: int,
        captured: Container[Key],
    ) -> Tracked:
        """Follow, at each position, the tokens that are ranked first in any layer. Collective.

        Only cells of ``resid_post`` count, if it was captured; otherwise all cells. The last layer's token comes first, then
        those that lead in the most layers, ties by lower index. A cell whose numbers are not finite has no leader.

        Args:
            keys: the (site, layer) of all logits, in order; the model's output may be among them without being captured.
            logits: ``[keys · positions, rows]`` in batches of keys, this rank's rows.
            most: the most tokens to follow per position.
            captured: the keys that are cells of the run.
        """
        largest = torch.cat([batch.amax(-1) for batch in logits])
        first = torch.cat([first_largest(batch) for batch in logits])
        ranks = rank.all_gather(torch.stack([largest.double(), (first + head.offset).double()], -1))  # [ranks, cells, 2]
        values, ids = ranks[..., 0], ranks[..., 1]
        best = values.amax(0)
        winners = torch.where(best.isfinite(), torch.where(values == best, ids, torch.inf).amin(0), NOBODY).long()
        by_key = winners.view(len(keys), positions).cpu().numpy()
        cells = [place for place, key in enumerate(keys) if key in captured]
        stream = [place for place in cells if keys[place][0] == "resid_post"] or cells
        last = max(stream, key=lambda place: keys[place][1])
        rows = [_leaders(by_key[stream, at].tolist(), int(by_key[last, at]), most) for at in range(positions)]
        return cls(torch.tensor(rows, device=largest.device))

    def logits(self, rank: Rank, head: HeadShard, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each followed token's logit, and how many logits are strictly larger, over all ranks' rows. Collective.

        Args:
            scores: ``[keys · positions, rows]``, this rank's rows.

        Returns:
            Both ``[keys · positions, m]``; −∞ and an arbitrary number for :data:`NOBODY`.
        """
        ids = self.ids.repeat(scores.shape[0] // self.ids.shape[0], 1)  # [cells, m]
        found = head.logits_at(rank, scores, ids)
        # One token at a time: all at once would take the memory of m blocks of logits.
        above = torch.stack([(scores > found[:, m : m + 1]).sum(-1) for m in range(ids.shape[1])], -1)
        return found, rank.all_reduce(above)

    def figures(self, logits: torch.Tensor, above: torch.Tensor, log_sum_exp: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the variables, ``[keys · positions, m]`` each, from what :meth:`logits` found."""
        ids = self.ids.repeat(logits.shape[0] // self.ids.shape[0], 1)
        missing = (ids == NOBODY) | ~log_sum_exp.isfinite()[:, None]
        values = logits.double().masked_fill(missing, torch.nan)
        return {
            "tracked_id": ids,
            "tracked_logit": values,
            "tracked_prob": (values - log_sum_exp[:, None]).exp(),
            "tracked_rank": above.masked_fill(missing, -1),
        }


def _leaders(ids: Sequence[int], final: int, most: int) -> list[int]:
    """Return the distinct tokens that lead, at most ``most``, padded with :data:`NOBODY`."""
    layers = Counter(index for index in ids if index != NOBODY)
    order = sorted(layers, key=lambda index: (index != final, -layers[index], index))[:most]
    return order + [NOBODY] * (most - len(order))


def trimmed(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reduce ``tracked_id`` to ``[position, tracked]``, and drop tracked columns that are empty at every position.

    Args:
        variables: with tracked tokens, ``tracked_id`` is among them as ``[site, layer, position, tracked]``.
    """
    if "tracked_id" not in variables:
        return variables
    ids = variables["tracked_id"][0, 0]  # the same in every cell of a position
    used = int((ids != NOBODY).any(0).sum()) if len(ids) else ids.shape[1]  # gaps come last
    cut = {name: values[..., :used] for name, values in variables.items() if name.startswith("tracked_")}
    return {**variables, **cut, "tracked_id": ids[:, :used]}
