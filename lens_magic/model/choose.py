"""Choosing the next token from logits that are spread over the ranks, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import LensError
from ..options import generator_seed
from ..ranks.rank import Aborted, Rank
from ..words import finite_again
from .load import Loaded


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; ties go to the lower index."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


GREEDY = Sampling()


@dataclass(frozen=True)
class Choice:
    """Result of a step, the same on every rank: each sequence's token, whether to stop, and the numbers rank 0 sent."""

    tokens: list[int]
    stop: bool
    told: list[float]


class Chooser:
    """Chooses each sequence's next token. One exchange per step carries the ranks' candidates and the numbers rank 0 sends.

    Args:
        batch: number of sequences.
        told: how many numbers rank 0 sends the others with every token, besides its stop flag.
        steered: whether something changes the model's states.
    """

    def __init__(
        self, rank: Rank, loaded: Loaded, sampling: Sampling, batch: int, told: int = 0, steered: bool = False
    ) -> None:
        self.rank = rank
        self.head = loaded.head
        self.sampling = sampling
        self.batch = batch
        self.vocabulary = loaded.vocabulary
        self._remedy = finite_again(str(loaded.dtype).removeprefix("torch."), steered)
        self._sizes = [end - begin for begin, end in zip(loaded.bounds, loaded.bounds[1:], strict=False)]
        # Each sequence draws as it would alone; on the host, so that the numbers do not depend on the device.
        self._random = [torch.Generator().manual_seed(generator_seed(sampling.seed)) for _ in range(batch)]
        self._draws = torch.zeros(batch, dtype=torch.float64, device=loaded.device)
        self._news = torch.zeros(1 + told, dtype=torch.float64, device=loaded.device)  # stop flag, then what rank 0 sends
        self._sent: list[float] = [0.0] * (1 + told)

    def prepare(self, tell: Sequence[float] = ()) -> None:
        """Write the values a step will use to its tensors; called before the step, outside of it."""
        news = [float(self.rank.stop_requested), *tell]
        if news != self._sent:
            self._news.copy_(torch.tensor(news, dtype=torch.float64))
            self._sent = news
        if self.sampling.temperature > 0:
            draws = [torch.rand((), dtype=torch.float64, generator=one) for one in self._random]
            self._draws.copy_(torch.stack(draws))

    def __call__(self, normalised: torch.Tensor) -> torch.Tensor:
        """Choose the tokens after states ``[batch, d]``; returns them, the stop flag and what rank 0 sent.

        The result is ``[batch + 1 + told]`` float64. A token whose logits are not finite is the vocabulary's size.
        """
        if self.sampling.temperature == 0:
            return self._greedy(*self.head.largest(normalised))
        return self._sampled(self.head.logits(normalised))

    def read(self, chosen: torch.Tensor) -> Choice:
        """Bring a step's result to the host, which is a step's only wait for the device.

        Raises:
            LensError: the model's logits are not finite; raised on every rank.
            Aborted: another rank has failed, so the exchanged numbers are undefined.
        """
        values: list[float] = chosen.tolist()
        if self.rank.aborted.is_set():
            raise Aborted
        tokens = [int(value) for value in values[: self.batch]]
        if not all(token < self.vocabulary for token in tokens):
            raise LensError(f"the model's logits are not finite; {self._remedy}")
        return Choice(tokens, values[self.batch] > 0, values[self.batch + 1 :])

    def _greedy(self, best: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Choose the largest logit of all ranks, given each sequence's on this one and its row, both ``[batch]``."""
        nowhere = self.vocabulary
        first = torch.where(best.isfinite(), place + self.head.offset, nowhere)  # [batch]
        if self.rank.size == 1:
            return torch.cat([first.double(), self._news])
        mine = torch.cat([best.double(), first.double(), self._news])
        shared = self.rank.all_gather(mine)  # [ranks, 2 · batch + 1 + told]
        bests, firsts = shared[:, : self.batch], shared[:, self.batch : 2 * self.batch]
        won = torch.where(bests == bests.amax(0), firsts, nowhere).amin(0)
        lost = (firsts == nowhere).any(0)  # if any rank's logits are not finite, there is no best
        return torch.cat([torch.where(lost, nowhere, won), shared[0, 2 * self.batch :]])

    def _sampled(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw a token of each sequence, given the logits of this rank's rows, ``[batch, rows]``."""
        if self.rank.size == 1:
            return torch.cat([self._draw(logits), self._news])
        batch, widest = self.batch, max(self._sizes)
        news = self._news.view(torch.float32)  # its bits, not its values: nothing rank 0 sends is rounded
        mine = logits.new_zeros(batch * widest + news.shape[0])
        mine[: batch * widest].view(batch, widest)[:, : logits.shape[1]] = logits
        mine[batch * widest :] = news
        shared = self.rank.all_gather(mine)  # [ranks, batch · widest + 1 + told]
        parts = [part[: batch * widest].view(batch, widest)[:, :size] for part, size in zip(shared, self._sizes, strict=True)]
        return torch.cat([self._draw(torch.cat(parts, -1)), shared[0, batch * widest :].clone().view(torch.float64)])

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw by inverting the cumulative distribution: only rounding at its steps could depend on the number of ranks.

        Args:
            logits: over the whole vocabulary, ``[batch, vocabulary]``.
        """
        probabilities = nucleus(torch.softmax(logits.double() / self.sampling.temperature, -1), self.sampling.top_p)
        cumulative = probabilities.cumsum(-1)
        at = self._draws[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, at, right=True)[:, 0]
        places = torch.arange(logits.shape[1], device=logits.device)
        last = torch.where(probabilities > 0, places, 0).amax(-1)
        finite = logits.amax(-1).isfinite() & logits.isnan().logical_not().all(-1)
        return torch.where(finite, torch.minimum(drawn, last), self.vocabulary).double()


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the smallest set of most probable tokens whose mass reaches ``top_p`` (at least one; ties by index).

    Args:
        probabilities: ``[…, vocabulary]``.
    """
    if top_p >= 1:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(-1) - ordered
    kept = mass_before < top_p
    kept[..., 0] = True
    return torch.where(torch.zeros_like(kept).scatter(-1, order, kept), probabilities, 0.0)
