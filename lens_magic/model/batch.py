"""Batches of sequences of different lengths, padded on the left so that their last tokens are in one column.

Sequences with a common prefix can share a row, which holds the prefix once: each token attends only to the tokens before it
in its own sequence, so the results are the same as in separate rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .load import Loaded
from .sites import Visitor, Window, attached
from .tokens import common_prefix

Ids = Sequence[int]

_LONGEST_ROW = 2048  # tokens of a row of several sequences; its mask has the square of that


@dataclass(frozen=True)
class Forks:
    """Where rows fork into the sequences they hold.

    Attributes:
        branch: ``[rows, columns]``, without repetitions: 0 for a token that sequences share, 1, 2 … for one sequence's own,
            −1 for padding.
        times: how often each row is repeated; copies are adjacent.
        places: ``[rows · times, columns]``: each token's position in its own sequence.
        ends: row and column of each sequence's last token, in the order of the sequences.
    """

    branch: torch.Tensor
    times: int
    places: torch.Tensor
    ends: tuple[torch.Tensor, torch.Tensor]

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the mask to add to attention's scores, ``[rows · times, 1, columns, columns]``: 0 for what a token sees."""
        column = torch.arange(self.branch.shape[1], device=self.branch.device)
        looking, at = self.branch[:, :, None], self.branch[:, None, :]
        seen = (column[:, None] >= column) & ((at == 0) | (at == looking)) & (at >= 0)
        # Not −∞: padding sees nothing at all, and a softmax over −∞ alone is NaN.
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
        return mask.expand(self.times, -1, -1, -1) if len(mask) == 1 else mask.repeat_interleave(self.times, 0)


@dataclass(frozen=True)
class Batch:
    """Left-padded sequences, one per row or, if rows fork, several.

    Attributes:
        ids: ``[rows, columns]``; values in padded places are ignored.
        padding: for each row, the number of padded columns on its left.
    """

    ids: torch.Tensor
    padding: tuple[int, ...]
    forks: Forks | None = None

    @classmethod
    def of(cls, sequences: Sequence[Ids], device: torch.device) -> Batch:
        """Batch sequences, one per row."""
        columns = max(len(sequence) for sequence in sequences)
        padding = tuple(columns - len(sequence) for sequence in sequences)
        rows = [[0] * empty + list(sequence) for empty, sequence in zip(padding, sequences, strict=True)]
        return cls(torch.tensor(rows, device=device), padding)

    @classmethod
    def forked(cls, rows: Sequence[Sequence[Ids]], device: torch.device, times: int = 1) -> Batch:
        """Batch rows of one or more sequences; a row holds the common prefix of its sequences once.

        Args:
            times: how often to repeat each row; copies are adjacent.
        """
        laid = [row for sequences in rows for row in [_Row.of(sequences)] * times]
        batch = cls.of([row.ids for row in laid], device)
        if all(len(row.ends) == 1 for row in laid):
            return batch
        padded = list(zip(batch.padding, laid, strict=True))
        branch = [[-1] * empty + row.branch for empty, row in padded[::times]]
        places = [[0] * empty + row.places for empty, row in padded]
        ends = [(number, empty + end) for number, (empty, row) in enumerate(padded) for end in row.ends]
        row, column = torch.tensor(ends, device=device).unbind(-1)
        forks = Forks(torch.tensor(branch, device=device), times, torch.tensor(places, device=device), (row, column))
        return cls(batch.ids, batch.padding, forks)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.padding)

    @property
    def columns(self) -> int:
        """The longest row's length."""
        return int(self.ids.shape[1])

    @property
    def padded(self) -> bool:
        """Whether any row is shorter than the longest."""
        return any(self.padding)

    @property
    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of each sequence's last token, in the order of the sequences."""
        if self.forks is not None:
            return self.forks.ends
        row = torch.arange(self.size, device=self.ids.device)
        return row, torch.full_like(row, self.columns - 1)

    def columns_of(self, number: int, begin: int) -> torch.Tensor:
        """Return the columns of a sequence's tokens, from position ``begin`` in the sequence on."""
        row, end = (int(places[number]) for places in self.ends)
        if self.forks is None:
            return torch.arange(self.padding[row] + begin, self.columns, device=self.ids.device)
        branch = self.forks.branch[row // self.forks.times]
        seen = (branch == 0) | (branch == branch[end])
        return (seen & (self.forks.places[row] >= begin)).nonzero()[:, 0]

    def mask(self, columns: int, always: bool = False) -> torch.Tensor | None:
        """Return which of the first ``columns`` columns hold a token, ``[rows, columns]``; None if all do.

        Args:
            columns: may exceed the batch's; columns yet to come count as tokens.
            always: return a mask even if all do.
        """
        if not self.padded and not always:
            return None
        empty = torch.tensor(self.padding, device=self.ids.device)
        return torch.arange(columns, device=self.ids.device) >= empty[:, None]

    def position_ids(self, start: int, length: int) -> torch.Tensor:
        """Return each token's position in its own sequence, ``[rows, length]``."""
        if self.forks is not None:
            return self.forks.places[:, start : start + length]
        empty = torch.tensor(self.padding, device=self.ids.device)
        return (torch.arange(start, start + length, device=self.ids.device) - empty[:, None]).clamp(min=0)


@dataclass
class _Row:
    """Sequences in one row: tokens, the branch and position of each, and the index of each sequence's last token."""

    ids: list[int]
    branch: list[int]
    places: list[int]
    ends: list[int]

    @classmethod
    def of(cls, sequences: Sequence[Ids]) -> _Row:
        shared = shared_tokens(sequences)
        row = cls(list(sequences[0][:shared]), [0] * shared, list(range(shared)), [])
        for number, sequence in enumerate(sequences, 1):
            row.ids += sequence[shared:]
            row.branch += [number] * (len(sequence) - shared)
            row.places += range(shared, len(sequence))
            row.ends.append(len(row.ids) - 1)
        return row


def rows_of(loaded: Loaded, sequences: Sequence[Ids]) -> list[list[int]]:
    """Group sequences into rows, by their indices, to have fewer tokens to run.

    They are sorted, and each joins the row of the previous one if that saves more tokens.
    """
    if not may_fork(loaded, sequences):
        return [[number] for number in range(len(sequences))]
    rows: list[list[int]] = []
    for number in sorted(range(len(sequences)), key=lambda number: tuple(sequences[number])):
        before = [sequences[member] for member in rows[-1]] if rows else []
        after = [*before, sequences[number]]
        if before and _spared(after) > _spared(before) and fit_a_row(after):
            rows[-1].append(number)
        else:
            rows.append([number])
    return rows


def may_fork(loaded: Loaded, sequences: Sequence[Ids]) -> bool:
    """Whether rows of a batch of these sequences may fork: attention uses our mask, the same in all of its layers.

    The mask is also that of the batch's other rows, and knows no sliding window, so none of the sequences may be longer.
    """
    config = loaded.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return config._attn_implementation in ("eager", "sdpa") and (window is None or max(map(len, sequences)) <= window)


def fit_a_row(sequences: Sequence[Ids]) -> bool:
    """Whether one row can hold sequences: attention and its mask cost the square of a row.

    It is at most twice as long as its longest sequence, and at most 2048 tokens.
    """
    return row_length(sequences) <= min(2 * max(map(len, sequences)), _LONGEST_ROW)


def packed(lengths: Sequence[int], tokens: int, most: int | None = None) -> Iterator[list[int]]:
    """Yield batches of sequences of similar length, so that little is padded, as lists of indices.

    Args:
        tokens: the most tokens in a batch, padding included; a longer sequence is a batch of its own.
        most: the most sequences in a batch.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == most or (len(batch) + 1) * lengths[number] > tokens):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def row_length(sequences: Sequence[Ids]) -> int:
    """Return the number of tokens in a row of these sequences."""
    return sum(map(len, sequences)) - _spared(sequences)


def _spared(sequences: Sequence[Ids]) -> int:
    return (len(sequences) - 1) * shared_tokens(sequences)


def shared_tokens(sequences: Sequence[Ids]) -> int:
    """Return the length of the sequences' common prefix; of several sequences, it never includes a last token."""
    most = min(map(len, sequences)) - (len(sequences) > 1)
    return min(most, common_prefix(*sequences))


def read_forward(loaded: Loaded, sequences: Sequence[Ids], visitors: Sequence[Visitor] = ()) -> torch.Tensor:
    """Call :func:`read_batch` on a batch of sequences, one per row."""
    return read_batch(loaded, Batch.of(sequences, loaded.device), visitors)


def read_batch(loaded: Loaded, batch: Batch, visitors: Sequence[Visitor] = ()) -> torch.Tensor:
    """Run one uncached forward over whole sequences, with visitors attached.

    Every rank calls it with the same batch. Position 0 is the last column, which has each sequence's last token unless rows
    fork.

    Returns:
        The normalised final state of each sequence's last token, ``[sequences, d]``, the same on every rank.
    """
    window = Window(0, batch.columns, batch.columns - 1, batch.padding)
    mask = batch.mask(batch.columns) if batch.forks is None else batch.forks.mask(loaded.dtype)
    with torch.inference_mode(), attached(loaded.model, loaded.anatomy, visitors, window):
        for visitor in visitors:
            visitor.prepare(window)
        output = loaded.backbone(
            input_ids=batch.ids,
            attention_mask=mask,
            position_ids=batch.position_ids(0, batch.columns),
            use_cache=False,
        )
        for visitor in visitors:
            visitor.finish(window)
    states: torch.Tensor = output[0]  # [rows, columns, d]; by number, as a configuration may ask for tuples
    return states[batch.ends]
