"""The language-model head, split over the vocabulary: each rank multiplies with its own rows only.

Ranks then exchange a few numbers per cell instead of a vocabulary of logits, and every probability is still over the whole
vocabulary (docs/architecture.md, "The head").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..ranks.rank import Rank

CONVERTED_ELEMENTS = 1 << 22  # weights converted to float32 at a time on a CPU: 16 MB
_FEW_CELLS, _CONVERTED_FOR_FEW = 64, 1 << 19  # with few cells, reading them back counts; 2 MB stay in the cache
# A bias of −∞ bans a token; this does too, as its probability is 0, and differences of it are numbers.
_BANNED = -1e5


def shard_bounds(vocabulary: int, ranks: int) -> list[int]:
    """Return where each rank's rows begin and the last rank's end: ``ranks + 1`` numbers; sizes differ by one at most."""
    return [vocabulary * rank // ranks for rank in range(ranks + 1)]


@dataclass(frozen=True)
class HeadShard:
    """Rows ``offset`` … ``offset + rows − 1`` of the head.

    Attributes:
        weight: ``[rows, d]``, a view of the model's own weight (the embedding's if they are tied), or a copy of these rows on
            a GPU if only they were moved there.
        bias: ``[rows]`` or None.
        offset: vocabulary index of the first row.
        softcap: logits become ``softcap · tanh(logit / softcap)``; None for no capping.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    offset: int
    softcap: float | None = None

    @property
    def rows(self) -> int:
        """Number of vocabulary entries this rank holds."""
        return int(self.weight.shape[0])

    def logits(self, normalised: torch.Tensor) -> torch.Tensor:
        """Compute the logits of this rank's rows, float32 throughout: ``[cells, d]`` → ``[cells, rows]``."""
        logits = _float32_product(normalised, self.weight)
        if self.bias is not None:
            logits += self.bias.float().clamp(min=_BANNED)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def logits_at(self, rank: Rank, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of given entries on every rank, exactly as computed by the rank with their row. Collective.

        Args:
            logits: of this rank's rows, ``[cells, rows]``.
            ids: ``[cells, m]``.

        Returns:
            ``[cells, m]``; −∞ for an id that no rank holds.
        """
        local = ids - self.offset
        here = (local >= 0) & (local < self.rows)
        found = logits.gather(1, local.clamp(0, self.rows - 1))
        return rank.all_reduce(torch.where(here, found, -torch.inf), "max")


def log_sum_exp(rank: Rank, logits: torch.Tensor) -> torch.Tensor:
    """Return log Σ exp over the rows of all ranks, ``[…, rows]`` → ``[…]``, in the logits' own dtype. Collective."""
    return rank.all_gather(logits.logsumexp(-1)).logsumexp(0)


def _float32_product(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute ``states @ weight.T`` as if both were float32, without a float32 copy of the whole weight."""
    if weight.dtype == torch.float32:
        return F.linear(states.float(), weight)
    if weight.is_cuda and states.dtype == weight.dtype and weight.itemsize == 2:
        # The products of 16-bit numbers are exact in float32; only the sum rounds, as it would in float32.
        return torch.mm(states, weight.t(), out_dtype=torch.float32)
    states = states.float()
    out = states.new_empty((states.shape[0], weight.shape[0]))
    elements = CONVERTED_ELEMENTS if states.shape[0] > _FEW_CELLS else _CONVERTED_FOR_FEW
    step = max(1, elements // weight.shape[1])
    converted = states.new_empty((min(step, weight.shape[0]), weight.shape[1]))
    for first in range(0, weight.shape[0], step):
        rows = weight[first : first + step]
        torch.mm(states, converted[: len(rows)].copy_(rows).t(), out=out[:, first : first + step])
    return out
