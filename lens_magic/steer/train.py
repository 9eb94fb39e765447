"""Learning a direction: read states of positive and negative texts in one pass over the pairs, and find what separates them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import LensError
from ..model.batch import Batch, fit_a_row, may_fork, packed, read_batch, shared_tokens
from ..model.load import Loaded, loaded_on
from ..model.sites import Visit, Visitor, Window
from ..model.tokens import common_prefix
from ..ranks.rank import Rank
from . import labels
from .asked import tokens
from .data import Items, Question, TextPair
from .vector import Quality

POSITIONS = ("label", "last", "mean")
_TOKENS_A_BATCH, _TEXTS_A_BATCH = 4096, 64
_FOLDS = 5
# A difference shorter than this, relative to the states it is a difference of, is rounding error.
_NOTHING = {torch.float32: 1e-5, torch.float64: 1e-5}
_NOTHING_16_BIT = 1e-3


@dataclass(frozen=True)
class Reading:
    """A text as tokens, of which the mean of the states from token ``begin`` to the last is read."""

    ids: tuple[int, ...]
    begin: int


@dataclass(frozen=True)
class Example:
    """Two readings of one item that a direction should separate; each order of a question is an example."""

    positive: Reading
    negative: Reading
    item: int


@dataclass(frozen=True)
class Learnt:
    """What was learnt at one layer.

    Attributes:
        direction: ``[d]``, float32, of unit length.
        norm: length of the mean difference along it.
        nothing: whether that length is rounding error, so that there is no direction.
        scale: mean length of the states.
    """

    direction: torch.Tensor
    norm: float
    nothing: bool
    scale: float
    quality: Quality


# -- what is read -------------------------------------------------------------------------------------------------------


def examples_of(
    tokenizer: Any, items: Items, position: str, context: int, chat: bool = False
) -> tuple[list[Example], dict[str, int], list[str]]:
    """Tokenize every item, questions in both orders of their options.

    Args:
        position: "label": the state at the answer's label token, the prompt extended through everything before it; "last":
            at the final token of prompt and answer; "mean": the mean over the answer's tokens (a plain text's, but for
            the sequence's first).
        context: longest sequence the model takes.
        chat: questions and texts are a user's messages in the model's chat template, answers the assistant's.

    Returns:
        The examples; how many items were left out, by reason; the label tokens in readable form.

    Raises:
        LensError: the label is not one token, or there is no such chat.
    """
    found: list[Example] = []
    rejected: Counter[str] = Counter()
    shown: dict[str, None] = {}
    every: list[Question | TextPair] = [*items.questions, *items.texts]
    for number, item in enumerate(every):
        if isinstance(item, TextPair):
            sides = [tuple(_reading(tokenizer, text, "", position, chat) for text in (item.positive, item.negative))]
        elif position == "label":
            prompts = [labels.resolve(tokenizer, order.text, order.matching, order.other, chat) for order in item.orders]
            shown.update((repr(label), None) for prompt in prompts for label in sorted((prompt.label, prompt.other)))
            sides = [(_at_label(prompt, prompt.label_id), _at_label(prompt, prompt.other_id)) for prompt in prompts]
        else:
            sides = [
                tuple(_reading(tokenizer, order.text, answer, position, chat) for answer in (order.matching, order.other))
                for order in item.orders
            ]
        if reason := _unusable(sides, context):
            rejected[reason] += 1
        else:
            found += [Example(positive, negative, number) for positive, negative in sides]
    return found, dict(rejected), list(shown)


def _at_label(prompt: labels.LabelPrompt, label: int) -> Reading:
    return Reading((*prompt.prefix_ids, label), len(prompt.prefix_ids))


def _reading(tokenizer: Any, prompt: str, answer: str, position: str, chat: bool) -> Reading:
    """Return what to read of a prompt and its answer, or of a plain text, which is a prompt without one."""
    ids, first = tokens(tokenizer, prompt, answer, chat)
    if position == "last":
        return Reading(ids, max(first, len(ids) - 1))  # of no tokens there is no last
    # A token that holds the end of the prompt and the start of the answer is the answer's: it differs from the prompt's.
    begin = max(first, common_prefix(ids, tokens(tokenizer, prompt, "", chat)[0])) if answer else first
    # Of a sequence's first token trained models make an attention sink, a hundred times as long as other states in some and of
    # the same direction in all texts: in the means it would leave a difference that tells of the texts' lengths alone.
    return Reading(ids, max(begin, min(1, len(ids) - 1)))


def _unusable(sides: Sequence[Sequence[Reading]], context: int) -> str | None:
    for positive, negative in sides:
        if max(len(positive.ids), len(negative.ids)) > context:
            return f"longer than the model's context of {context}"
        if positive.begin >= len(positive.ids) or negative.begin >= len(negative.ids):
            return "no token to read"
        if positive == negative:
            return "the same tokens on both sides"
    return None


# -- reading, on every rank ---------------------------------------------------------------------------------------------


class _AllRead(Exception):
    """The forward has passed the last site that is read; the rest of it is not needed."""


class _Reader(Visitor):
    """Keeps what is read at this rank's layers, and ends the forward after the last layer that any rank reads."""

    def __init__(self, site: str, layers: Sequence[int], last: int, readings: int) -> None:
        self.states: dict[int, list[torch.Tensor]] = {layer: [torch.empty(0)] * readings for layer in layers}
        self._site, self._last = site, last
        self._spans: list[tuple[int, int, torch.Tensor]] = []  # number, row and columns of each reading

    def read(self, loaded: Loaded, batch: Sequence[tuple[int, Reading]]) -> None:
        """Run one forward over these readings, each given with its number."""
        together = Batch.forked(_rows(loaded, [reading.ids for _, reading in batch]), loaded.device)
        self._spans = [
            (number, row, together.columns_of(place, reading.begin))
            for place, ((number, reading), row) in enumerate(zip(batch, together.ends[0].tolist(), strict=True))
        ]
        with contextlib.suppress(_AllRead):
            read_batch(loaded, together, (self,))

    def visits(self) -> Mapping[tuple[str, int], Visit]:
        """Return the visits, by (site, layer)."""
        return {(self._site, layer): self._keeper(layer) for layer in (*self.states, self._last)}

    def _keeper(self, layer: int) -> Visit:
        def keep(states: torch.Tensor, window: Window) -> None:
            # states: [rows, columns, d]
            if layer in self.states:
                read = torch.stack([states[row, columns].float().mean(0) for _, row, columns in self._spans]).cpu()
                for (number, _, _), state in zip(self._spans, read, strict=True):
                    self.states[layer][number] = state
            if layer == self._last:
                raise _AllRead

        return keep


def _rows(loaded: Loaded, sides: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Put the two sides of each example into one row if they begin alike and the model allows it."""
    rows: list[list[tuple[int, ...]]] = []
    forks = may_fork(loaded, sides)
    for pair in zip(sides[0::2], sides[1::2], strict=True):
        together = forks and shared_tokens(pair) > 0 and fit_a_row(pair)
        rows += [list(pair)] if together else [[ids] for ids in pair]
    return rows


def learn(rank: Rank, examples: Sequence[Example], site: str, layers: Sequence[int], method: str) -> dict[int, Learnt]:
    """Read all examples in one pass and learn the directions of this rank's share of the layers. Collective.

    Emits ("reading", texts done, texts) and ("learning", layers done, layers). An interrupt raises KeyboardInterrupt on all
    ranks, between batches and between layers.
    """
    loaded = loaded_on(rank)
    readings = [side for example in examples for side in (example.positive, example.negative)]
    lengths = [2 * max(len(example.positive.ids), len(example.negative.ids)) for example in examples]  # of both sides
    mine = layers[rank.rank :: rank.size]
    reader = _Reader(site, mine, max(layers), len(readings))
    done = 0
    for batch in packed(lengths, _TOKENS_A_BATCH, _TEXTS_A_BATCH // 2):
        _stop_if_asked(rank)
        reader.read(loaded, [(text, readings[text]) for number in batch for text in (2 * number, 2 * number + 1)])
        done += 2 * len(batch)
        rank.emit(("reading", done, len(readings)))
    items = np.array([example.item for example in examples])
    nothing = _NOTHING.get(loaded.dtype, _NOTHING_16_BIT)
    learnt: dict[int, Learnt] = {}
    for first in range(0, len(layers), rank.size):  # a layer per rank at a time, so that all ranks ask together whether to stop
        _stop_if_asked(rank)
        for layer in layers[first + rank.rank : first + rank.rank + 1]:
            states = torch.stack(reader.states.pop(layer))  # text 2n is example n's positive side, 2n + 1 its negative
            if not states.isfinite().all():
                own = str(loaded.dtype).removeprefix("torch.")
                raise LensError(f"states at {site} of layer {layer} are not finite in {own}; another dtype (--dtype) may help")
            learnt[layer] = learn_layer(states, items, method, nothing)
        rank.emit(("learning", min(first + rank.size, len(layers)), len(layers)))
    return learnt


def _stop_if_asked(rank: Rank) -> None:
    if rank.agree_to_stop():
        raise KeyboardInterrupt


# -- learning, from states ----------------------------------------------------------------------------------------------


def learn_layer(states: torch.Tensor, items: np.ndarray, method: str, nothing: float = 1e-5) -> Learnt:
    """Learn a layer's direction, and whether there is one.

    Args:
        states: ``[2 · examples, d]``, alternately positive and negative.
        items: ``[examples]``, which item each example belongs to; an item is never split between training and test.
        nothing: relative length below which a difference is rounding error.
    """
    positive, negative = states[0::2].double(), states[1::2].double()  # [examples, d]
    scale = float(states.norm(dim=-1).mean())
    direction = METHODS[method](positive, negative, items)
    difference = (positive - negative).mean(0)
    norm = float(difference @ direction)
    return Learnt(
        direction=direction.float(),
        norm=norm,
        nothing=not norm > nothing * scale,
        scale=scale,
        quality=_quality(positive, negative, items, METHODS[method]),
    )


Method = Callable[[torch.Tensor, torch.Tensor, np.ndarray], torch.Tensor]
"""Makes a unit direction, ``[d]``, of positive and negative states, ``[examples, d]``, and the item of each, ``[examples]``."""


def _unit(direction: torch.Tensor) -> torch.Tensor:
    length = direction.norm()
    return direction / length if length > 0 else direction


def mean_diff(positive: torch.Tensor, negative: torch.Tensor, _items: np.ndarray) -> torch.Tensor:
    """Return the mean difference (the paper's); zero if they cancel."""
    return _unit((positive - negative).mean(0))


def pca(positive: torch.Tensor, negative: torch.Tensor, items: np.ndarray) -> torch.Tensor:
    """Return the first principal component of the items' differences about zero, pointing to the positive side.

    Centring them first would remove the very direction on which they agree. Those of a question's two orders are averaged:
    what the letters differ in has the opposite sign in each, and would be the largest component.
    """
    differences = positive - negative
    by_item = [differences[torch.from_numpy(items == item)].mean(0) for item in np.unique(items)]
    direction: torch.Tensor = torch.linalg.svd(torch.stack(by_item), full_matrices=False)[2][0]
    return -direction if float(differences.mean(0) @ direction) < 0 else direction


def logistic(positive: torch.Tensor, negative: torch.Tensor, _items: np.ndarray) -> torch.Tensor:
    """Return the weights of scikit-learn's logistic regression of side on state (L2 penalty, C = 1) as a unit direction."""
    from sklearn.linear_model import LogisticRegression

    states = torch.cat([positive, negative]).numpy()
    sides = np.repeat([1, 0], len(positive))
    fitted = LogisticRegression(max_iter=1000).fit(states, sides)
    return _unit(torch.from_numpy(fitted.coef_[0]))


METHODS: Mapping[str, Method] = {"mean_diff": mean_diff, "pca": pca, "logistic": logistic}


def _quality(positive: torch.Tensor, negative: torch.Tensor, items: np.ndarray, method: Method) -> Quality:
    known = np.unique(items)
    if len(known) < 2:
        return Quality()
    shuffled = np.random.default_rng(0).permutation(known)

    def learnt_from(chosen: np.ndarray) -> torch.Tensor:
        rows = np.isin(items, chosen)
        return method(positive[rows], negative[rows], items[rows])

    middle = len(shuffled) // 2
    halves = float(learnt_from(shuffled[:middle]) @ learnt_from(shuffled[middle:]))
    aucs, ordered = [], []
    for held_out in np.array_split(shuffled, min(_FOLDS, len(shuffled))):
        direction = learnt_from(np.setdiff1d(known, held_out))
        rows = torch.from_numpy(np.isin(items, held_out))
        along = [(states[rows] @ direction).numpy() for states in (positive, negative)]
        aucs.append(_auc(*along))
        ordered.append(along[0] > along[1])
    return Quality(halves=halves, auc=float(np.mean(aucs)), pairs=float(np.concatenate(ordered).mean()))


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the share of (positive, negative) combinations in the right order; a tie counts half."""
    above = (positive[:, None] > negative[None, :]).mean()
    return float(above + 0.5 * (positive[:, None] == negative[None, :]).mean())
