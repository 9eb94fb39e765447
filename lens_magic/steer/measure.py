"""Propensities on the ranks: every α of a prompt in one batch, two directions and one steered layer at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import LensError
from ..model.batch import Batch, packed, read_batch, row_length, rows_of
from ..model.load import Loaded, loaded_on
from ..model.resume import KeptStates, Resumption, last_tokens_alone
from ..model.sites import Visitor
from ..ranks.rank import Rank
from ..words import finite_again
from .intervene import Steering
from .term import SteeringTerm

_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Tokens in a forward. More would not keep cores or multiprocessors busier, but take more memory."""
_AT_ONCE = 2
"""Directions in a forward, as a rule a vector and a random one: each is a term, which passes over the rows of all of them."""
_KEPT_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
"""Bytes of states kept for a batch of prompts, to resume from."""


@dataclass(frozen=True)
class Sweep:
    """What to measure, as sent to the ranks.

    Attributes:
        prompts: tokens up to the label, one prompt per (question, order).
        labels: for each prompt the matching answer's label token and the other's.
        directions: ``{layer: [direction, d]}``, float32, of the length that α multiplies; each layer is steered alone.
        alphas: all but 0, which steers nothing and is measured once.
        positions: as in a steering term.
        resume: start forwards where the change is made, if the model allows it.
        tokens: approximate number of tokens in a forward; by default what suits the device.
    """

    prompts: Sequence[Sequence[int]]
    labels: Sequence[tuple[int, int]]
    site: str
    directions: Mapping[int, torch.Tensor]
    alphas: tuple[float, ...]
    positions: Any = "all"
    resume: bool = True
    tokens: int | None = None

    @property
    def count(self) -> int:
        """Number of directions per layer."""
        return len(next(iter(self.directions.values())))

    @property
    def together(self) -> list[range]:
        """The directions of a layer, by number, as they share forwards."""
        return [range(first, min(first + _AT_ONCE, self.count)) for first in range(0, self.count, _AT_ONCE)]

    def repeats(self, some: range) -> int:
        """Return how often a row is repeated for some directions: once for each of them and each α."""
        return len(some) * len(self.alphas)


@dataclass
class Propensities:
    """What was measured, float64 on the CPU.

    Attributes:
        unsteered: ``[prompt]``.
        steered: ``[layer, direction, prompt, alpha]``.
        resumed: whether forwards started where the change is made.
        complete: ``[prompt]``, whether it was measured at all layers; all are, unless the user stopped it.
    """

    unsteered: torch.Tensor
    steered: torch.Tensor
    resumed: bool
    complete: torch.Tensor


def measure(rank: Rank, sweep: Sweep) -> Propensities:
    """Measure the propensity of every prompt, unsteered and under each direction and α at each layer alone. Collective.

    For a batch of prompts the model runs once unsteered, keeping the states before each change; then, for each layer, over
    all α and directions from there on, a few directions at a time. Emits ("evaluating", done, total) in prompts × layers. If
    the user stops it, which is asked after every forward, ``complete`` says which prompts were finished.
    """
    loaded = loaded_on(rank)
    label_logits = _LabelLogits(rank, loaded, sweep.labels)
    layers = sorted(sweep.directions)
    resumption = Resumption(loaded, sweep.site)
    keys = [key for layer in layers for key in resumption.keys(layer)] if sweep.resume else []
    if keys and not resumption.works(rank, sweep.prompts[:1], layers[-1]):
        keys = []
    measured = Propensities(
        torch.zeros(len(sweep.prompts), dtype=torch.float64),
        torch.zeros((len(layers), sweep.count, len(sweep.prompts), len(sweep.alphas)), dtype=torch.float64),
        bool(keys),
        torch.zeros(len(sweep.prompts), dtype=torch.bool),
    )
    forwards = list(itertools.product(range(len(layers)), sweep.together)) if sweep.alphas else []
    done, stopped = 0, False
    for rows in _batches(loaded, sweep, len(keys)):
        prompts = [[sweep.prompts[prompt] for prompt in row] for row in rows]
        chosen = [prompt for row in rows for prompt in row]
        kept = KeptStates(keys)
        measured.unsteered[chosen] = label_logits(_read(loaded, Batch.forked(prompts, loaded.device), kept), chosen)
        often = {times: Batch.forked(prompts, loaded.device, times) for times in {sweep.repeats(some) for _, some in forwards}}
        left = len(forwards)
        for place, some in forwards:
            repeats = sweep.repeats(some)
            # Prompt, direction and α of each reading.
            ways = list(itertools.product(some, range(len(sweep.alphas))))
            cases = [(prompt, *way) for row in rows for way in ways for prompt in row]
            read, directions, alphas = zip(*cases, strict=True)
            steering = Steering(loaded, _terms(sweep, layers[place], some, len(rows)), often[repeats].size)
            with resumption.at(layers[place], kept, repeats):
                found = label_logits(_read(loaded, often[repeats], steering), read)
            measured.steered[place, directions, read, alphas] = found
            left -= 1
            if some == sweep.together[-1]:
                done += len(chosen)
                rank.emit(("evaluating", done, len(layers) * len(sweep.prompts)))
            stopped = rank.agree_to_stop()
            if stopped:
                break
        measured.complete[chosen] = not left
        if stopped:
            break
    return measured


def _read(loaded: Loaded, batch: Batch, visitor: Visitor) -> torch.Tensor:
    """Return the normalised final states of a batch's prompts, ``[prompts, d]``."""
    with last_tokens_alone(loaded, batch):
        return read_batch(loaded, batch, [visitor])


def _terms(sweep: Sweep, layer: int, some: range, rows: int) -> list[SteeringTerm]:
    """Return one term for each of some directions; in the rows of the others its α is 0."""
    terms = []
    for number in some:
        block = [sweep.alphas if number == other else (0.0,) * len(sweep.alphas) for other in some]
        alphas = tuple(alpha for part in block for alpha in part) * rows
        direction = {layer: sweep.directions[layer][number]}
        terms.append(SteeringTerm(f"direction {number}", direction, sweep.site, alphas, positions=sweep.positions))
    return terms


def _batches(loaded: Loaded, sweep: Sweep, kept: int) -> Iterator[list[list[int]]]:
    """Yield the rows of prompts of one batch after another.

    Prompts share rows (a question's two orders begin alike) only if every position is steered: other positions are counted
    from each prompt's own end.
    """
    tokens = (sweep.tokens or _TOKENS[loaded.device.type]) // max(sweep.repeats(sweep.together[0]), 1)
    bytes_a_token = max(1, kept * loaded.width * loaded.dtype.itemsize)
    tokens = min(tokens, _KEPT_BYTES[loaded.device.type] // bytes_a_token)
    alone = [[number] for number in range(len(sweep.prompts))]
    rows = rows_of(loaded, sweep.prompts) if sweep.positions == "all" else alone
    columns = [row_length([sweep.prompts[prompt] for prompt in row]) for row in rows]
    for places in packed(columns, tokens):
        yield [rows[place] for place in places]


class _LabelLogits:
    """Logit(matching label) − logit(other label) of final states, from the ranks' rows of the head."""

    def __init__(self, rank: Rank, loaded: Loaded, labels: Sequence[tuple[int, int]]) -> None:
        self.rank, head, self._dtype = rank, loaded.head, str(loaded.dtype).removeprefix("torch.")
        self.tokens = sorted({token for pair in labels for token in pair})
        self.columns = torch.tensor([[self.tokens.index(token) for token in pair] for pair in labels])  # [prompt, 2]
        mine = [place for place, token in enumerate(self.tokens) if head.offset <= token < head.offset + head.rows]
        self.mine = torch.tensor(mine, dtype=torch.long, device=loaded.device)
        rows = torch.tensor([self.tokens[place] - head.offset for place in mine], dtype=torch.long, device=loaded.device)
        bias = None if head.bias is None else head.bias[rows]
        self.head = replace(head, weight=head.weight[rows], bias=bias)

    def __call__(self, normalised: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
        """Compute ``[batch, d]`` → ``[batch]``, float64 on the CPU, given the prompt of each row. Collective."""
        logits = normalised.new_zeros((len(prompts), len(self.tokens)), dtype=torch.float32)
        if len(self.mine):
            logits[:, self.mine] = self.head.logits(normalised)
        logits = self.rank.all_reduce(logits).double().cpu()  # each logit is one rank's: adding zeros rounds nothing
        pairs = logits.gather(1, self.columns[list(prompts)])  # [batch, 2]
        if not pairs.isfinite().all():  # the same on every rank
            remedy = finite_again(self._dtype, steered=True)
            raise LensError(f"the logits of the labels are not finite; {remedy}")
        return pairs[:, 0] - pairs[:, 1]
