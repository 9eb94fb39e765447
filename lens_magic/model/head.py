"""The language-model head, split over the vocabulary: each rank multiplies with its own rows only.

Ranks then exchange a few numbers per cell instead of a vocabulary of logits, and every probability is still over the whole
vocabulary (docs/architecture.md, "The head").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ..ranks.rank import Rank
from ..ranks.recording import do
from .products import float32_product

# A bias of −∞ bans a token; this does too, as its probability is 0, and differences of it are numbers.
_BANNED = -1e5
# Errors of a 16-bit product summed in float32, as a share of it and of the largest: four times bfloat16's largest rounding
# error, and more than sums of 10,000 numbers lose.
_ROUNDING, _SUMMING = 2**-7, 2**-12
_SOME = 1024  # rows: with more that may have the largest logit, all are computed
_SMALL = 1 << 21  # weights: so few are converted as fast as candidates are found
_GROUP, _MANY = 128, 8192


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
        return self._finished(float32_product(normalised, self.weight))

    def largest(self, normalised: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each cell's largest logit (NaN if any is) and the first of this rank's rows that has it, both ``[cells]``."""
        rounded = self.weight.itemsize == 2 and normalised.dtype == self.weight.dtype
        large = self.weight.device.type == "cpu" and self.weight.numel() > _SMALL
        if normalised.shape[0] != 1 or not rounded or not large:
            return _largest(self.logits(normalised))
        value, row = normalised.new_empty(1, dtype=torch.float32), normalised.new_empty(1, dtype=torch.int64)

        def find() -> None:
            for found, into in zip(self._largest_of_some(normalised), (value, row), strict=True):
                into.copy_(found)

        do(find)  # as a whole: which rows it computes depends on the state
        return value, row

    def _largest_of_some(self, normalised: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the largest logit after one state, given in the weights' 16-bit type, without converting all weights.

        A product in that type takes half as long. It names the rows that may have the largest logit, given how it rounds;
        theirs are then computed as all would be.
        """
        rough = F.linear(normalised, self.weight)[0].float()
        error = rough.abs()
        error = error * _ROUNDING + error.amax() * _SUMMING
        about = rough if self.bias is None else rough + self._usable(self.bias)
        rows = (about + error >= (about - error).amax()).nonzero()[:, 0]  # none if a logit is NaN or infinite
        if 0 < len(rows) <= _SOME:
            some = replace(self, weight=self.weight[rows], bias=None if self.bias is None else self.bias[rows])
            exact = float32_product(normalised, some.weight)
            if bool(((exact[0] - rough[rows]).abs() <= error[rows]).all()):  # it rounds as expected
                value, place = _largest(some._finished(exact))
                return value, rows[place]
        return _largest(self.logits(normalised))

    def _finished(self, products: torch.Tensor) -> torch.Tensor:
        """Make logits of the products of states and weights, in place."""
        if self.bias is not None:
            products += self._usable(self.bias)
        if self.softcap is not None:
            products = torch.tanh(products / self.softcap) * self.softcap
        return products

    @staticmethod
    def _usable(bias: torch.Tensor) -> torch.Tensor:
        return bias.float().clamp(min=_BANNED)

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


def _largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    place = first_largest(logits)
    return logits.gather(1, place[:, None])[:, 0], place


def first_largest(logits: torch.Tensor) -> torch.Tensor:
    """Return the index of each row's largest value, ``[batch, rows]`` → ``[batch]``; the first of equals, a NaN if any is.

    In long rows the group with the maximum is found first: searching for an index takes ten times as long as for a maximum.
    """
    rows = logits.shape[1]
    if rows < _MANY:
        return logits.argmax(-1)
    whole = logits[:, : rows - rows % _GROUP].unflatten(-1, (-1, _GROUP)).amax(-1)
    maxima = torch.cat([whole, logits[:, -_GROUP:].amax(-1, keepdim=True)], -1)  # the last group overlaps the one before
    begin = (maxima.argmax(-1, keepdim=True) * _GROUP).clamp(max=rows - _GROUP)
    group = logits.gather(1, begin + torch.arange(_GROUP, device=logits.device))
    return begin[:, 0] + group.argmax(-1)
