"""Training a tuned lens on all ranks.

Each rank trains the translators of its own layers (i = rank, rank + n, …) and multiplies with its own rows of the head, as it
does for everything else. In a round the ranks translate one layer each, share the normalised states, score all of them
with their rows, and exchange log-sum-exps; the gradient with respect to a state is a sum over the rows, so it is a sum over
the ranks. What is computed does not depend on the number of ranks; the work, and the memory for translators and their
moments, are divided over them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..model.batch import packed
from ..model.head import HeadShard, log_sum_exp
from ..model.load import Loaded, loaded_on
from ..model.products import CONVERTED_ELEMENTS
from ..model.sites import Visit, Visitor, Window, attached
from ..ranks.rank import Rank
from .norms import FinalNorm, take_apart

_ROOM = 64 << 20  # bytes of one block of logits
_FORWARD_TOKENS = 1024
_BETAS, _EPS = (0.9, 0.999), 1e-8  # of Adam


@dataclass(frozen=True)
class TrainingRequest:
    """What to train on, as sent to the ranks.

    Attributes:
        pieces: the pieces of text to learn from, as tokens.
        steps: number of updates.
        tokens: about how many tokens each learns from.
        seed: of the order of the pieces.
        held_out: batches of pieces that are used only for measuring.
        learning_rate: Adam's, at the first step; it falls linearly to zero over the steps.
    """

    pieces: Sequence[Sequence[int]]
    steps: int
    tokens: int
    seed: int
    held_out: Sequence[Sequence[Sequence[int]]]
    learning_rate: float

    def batches(self) -> Iterator[list[Sequence[int]]]:
        """Yield the pieces for each step, going through all of them in a new random order each time."""
        rng = random.Random(self.seed)  # noqa: S311 - the order is no secret
        waiting: list[Sequence[int]] = []
        for _ in range(self.steps):
            batch: list[Sequence[int]] = []
            missing = self.tokens
            while missing > 0:
                waiting = waiting or rng.sample(self.pieces, len(self.pieces))
                batch.append(waiting.pop())
                missing -= len(batch[-1])
            yield batch


class _Reader(Visitor):
    """Reads the input of this rank's blocks, and the last block's output, for all tokens of a forward.

    Attributes:
        tokens: mask of the places in the running forward that hold a token, ``[batch, length]``.
    """

    tokens: torch.Tensor

    def __init__(self, layers: int, own: Sequence[int]) -> None:
        self._keys = {("resid_pre", index): index for index in own} | {("resid_post", layers - 1): layers}
        self._found: dict[int, list[torch.Tensor]] = {index: [] for index in self._keys.values()}

    def visits(self) -> Mapping[tuple[str, int], Visit]:
        return {key: self._visit(index) for key, index in self._keys.items()}

    def _visit(self, index: int) -> Visit:
        def read(states: torch.Tensor, window: Window) -> None:
            self._found[index].append(states[self.tokens].float())

        return read

    def states(self) -> dict[int, torch.Tensor]:
        """Return ``[tokens, d]`` by block; the last block's output is under the number of blocks."""
        return {index: torch.cat(parts) for index, parts in self._found.items()}


class _Trainer:
    """This rank's translators, and their optimiser."""

    def __init__(self, rank: Rank, loaded: Loaded, learning_rate: float) -> None:
        self.rank, self.loaded = rank, loaded
        self.head: HeadShard = loaded.head
        self.norm: FinalNorm = take_apart(loaded.norm, loaded.width, loaded.device, loaded.dtype)
        self.own = list(range(rank.rank, loaded.layers, rank.size))
        self.rounds = -(-loaded.layers // rank.size)

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=loaded.device, requires_grad=True)

        self.weights = {index: zeros(loaded.width, loaded.width) for index in self.own}
        self.biases = {index: zeros(loaded.width) for index in self.own}
        self.rate = learning_rate
        values = [*self.weights.values(), *self.biases.values()]
        self.optimiser = torch.optim.Adam(values, lr=learning_rate, betas=_BETAS, eps=_EPS) if values else None

    def step(self, pieces: Sequence[Sequence[int]], share: float) -> None:
        """Take one step on some pieces, with ``share`` of the learning rate."""
        self._pass(pieces, learn=True)
        if self.optimiser is not None:
            self.optimiser.param_groups[0]["lr"] = self.rate * share
            self.optimiser.step()
            self.optimiser.zero_grad()

    def divergences(self, batches: Sequence[Sequence[Sequence[int]]]) -> dict[int, float]:
        """Return the mean KL(output ‖ lens) over tokens in nats, by translator of this rank. Empty if interrupted. Collective.

        Emits ("measuring", batch, batches).
        """
        total = sum(len(piece) for pieces in batches for piece in pieces)
        sums = []
        for pieces in batches:
            if self.rank.agree_to_stop():  # not acknowledged here: callers still ask
                return {}
            sums.append(self._pass(pieces, learn=False))
            self.rank.emit(("measuring", len(sums), len(batches)))
        return {index: sum(one[index] for one in sums) / total for index in self.own} if batches else {}

    def _pass(self, pieces: Sequence[Sequence[int]], learn: bool) -> dict[int, float]:
        """Run the model over pieces and return the summed KL by translator; to learn, add gradients of the mean. Collective."""
        states = self._states(pieces)
        final = states[self.loaded.layers]
        tokens = len(final)
        at_once = max(1, _ROOM // (4 * self.rank.size * max(1, -(-self.loaded.vocabulary // self.rank.size))))
        sums = dict.fromkeys(self.own, 0.0)
        for begin in range(0, tokens, at_once):
            part = slice(begin, begin + at_once)
            with torch.no_grad():
                output = self.head.logits(self.norm(final[part]))  # [tokens, rows]
                log_output = output - log_sum_exp(self.rank, output)[:, None]
            for number in range(self.rounds):
                index = self.own[number] if number < len(self.own) else None
                normed = None if index is None else self._through(index, states[index][part])
                sent = torch.zeros_like(final[part]) if normed is None else normed.detach()
                divergence, slopes = self._compare(self.rank.all_gather(sent), log_output, learn)
                if index is not None and normed is not None:
                    sums[index] += divergence[self.rank.rank]
                    if learn:
                        normed.backward(slopes[self.rank.rank] / tokens)
        return sums

    def _states(self, pieces: Sequence[Sequence[int]]) -> dict[int, torch.Tensor]:
        """Return the tokens' states by block: ``[tokens, d]``, float32."""
        reader = _Reader(self.loaded.layers, self.own)
        with torch.no_grad(), attached(self.loaded.model, self.loaded.anatomy, [reader], Window()):
            for batch in packed([len(piece) for piece in pieces], _FORWARD_TOKENS):
                rows = [pieces[number] for number in batch]
                # Padded on the right, which no token of the text can see, so no mask is needed.
                longest = max(map(len, rows))
                ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.loaded.device)
                lengths = torch.tensor([len(row) for row in rows], device=ids.device)
                reader.tokens = torch.arange(longest, device=ids.device) < lengths[:, None]
                self.loaded.backbone(input_ids=ids, use_cache=False)
        return reader.states()

    def _through(self, index: int, states: torch.Tensor) -> torch.Tensor:
        """Translate and normalise: ``[tokens, d]`` → ``[tokens, d]``."""
        return self.norm(states + F.linear(states, self.weights[index], self.biases[index]))

    def _compare(self, normed: torch.Tensor, log_output: torch.Tensor, learn: bool) -> tuple[list[float], torch.Tensor]:
        """Return KL(output ‖ lens) of every rank's states ``[ranks, tokens, d]``, and its gradient. Collective.

        Args:
            log_output: this rank's rows of the model's own log-probabilities, ``[tokens, rows]``.
        """
        ranks, tokens, width = normed.shape
        with torch.no_grad():
            scores = self.head.logits(normed.flatten(0, 1))  # [ranks · tokens, rows]
            log_lens = (scores - log_sum_exp(self.rank, scores)[:, None]).view(ranks, tokens, -1)
            own = (log_output.exp() * (log_output - log_lens)).sum((1, 2), dtype=torch.float64)
            divergence = self.rank.all_reduce(own).tolist()
            if not learn:
                return divergence, normed
            slopes = (log_lens.exp_() - log_output.exp()).flatten(0, 1)
            if self.head.softcap is not None:  # d tanh(x) = 1 − tanh²(x)
                slopes *= 1 - (scores / self.head.softcap).square()
            return divergence, self.rank.all_reduce(_times(slopes, self.head.weight)).view(ranks, tokens, width)


def _times(slopes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return ``slopes @ weight`` in float32, ``[cells, rows]`` × ``[rows, d]``, without a float32 copy of all the weight."""
    if weight.dtype == torch.float32:
        return slopes @ weight
    out = slopes.new_zeros((slopes.shape[0], weight.shape[1]))
    step = max(1, CONVERTED_ELEMENTS // weight.shape[1])
    for first in range(0, weight.shape[0], step):
        out.addmm_(slopes[:, first : first + step], weight[first : first + step].float())
    return out


def train(rank: Rank, request: TrainingRequest) -> dict[str, Any]:
    """Train this rank's translators. Collective; an interrupt stops all ranks after the same step.

    Emits ("training", step, steps), and ("measuring", batch, batches) before and after.

    Returns:
        This rank's ``weights`` and ``biases`` by translator, and the held-out divergences ``before`` and ``after`` (empty if
        it was interrupted first); the number of steps ``done``.
    """
    trainer = _Trainer(rank, loaded_on(rank), request.learning_rate)
    before, after = trainer.divergences(request.held_out), {}
    steps, done = request.steps, 0
    for pieces in request.batches():
        if rank.agree_to_stop():
            rank.acknowledge_stop()
            break
        trainer.step(pieces, share=1 - done / steps)
        done += 1
        rank.emit(("training", done, steps))
    else:
        after = trainer.divergences(request.held_out)
    return {
        "weights": {index: weight.detach().cpu().numpy() for index, weight in trainer.weights.items()},
        "biases": {index: bias.detach().cpu().numpy() for index, bias in trainer.biases.items()},
        "before": before,
        "after": after,
        "done": done,
    }
