"""Sequences of different lengths side by side: padded on the left, so that their last tokens stand in one column.

Sequences that begin alike can stand in one row, what they share there once: each token sees what its own sequence holds
before it, so the row gives what each alone would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .load import Loaded
from .sites import Visitor, Window, attached
from .tokens import common_prefix

Ids = Sequence[int]

_LONGEST_ROW = 2048  # of several sequences: its mask has the square of that


@dataclass(frozen=True)
class Forks:
    """Where rows fork into the sequences they hold.

    Attributes:
        branch: of each row once, ``[rows, columns]``: 0 where sequences share a token, 1, 2 … where it is one's own, −1 for
            padding.
        times: how often each row stands there, one after another.
        places: ``[rows · times, columns]``: each token's place in its own sequence.
        ends: row and column of each sequence's last token, in their order.
    """

    branch: torch.Tensor
    times: int
    places: torch.Tensor
    ends: tuple[torch.Tensor, torch.Tensor]

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """What is added to attention's scores, ``[rows · times, 1, columns, columns]``: 0 for what a token sees."""
        column = torch.arange(self.branch.shape[1], device=self.branch.device)
        looking, at = self.branch[:, :, None], self.branch[:, None, :]
        seen = (column[:, None] >= column) & ((at == 0) | (at == looking)) & (at >= 0)
        # Not −∞: padding sees nothing at all, and an average over nothing is NaN.
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
        return mask.expand(self.times, -1, -1, -1) if len(mask) == 1 else mask.repeat_interleave(self.times, 0)


@dataclass(frozen=True)
class Batch:
    """Left-padded sequences, one a row or, where they fork, several.

    Attributes:
        ids: ``[rows, columns]``; what stands in padded places is never looked at.
        padding: for each row, how many columns on the left hold nothing.
    """

    ids: torch.Tensor
    padding: tuple[int, ...]
    forks: Forks | None = None

    @classmethod
    def of(cls, sequences: Sequence[Ids], device: torch.device) -> Batch:
        """Put sequences side by side."""
        columns = max(len(sequence) for sequence in sequences)
        padding = tuple(columns - len(sequence) for sequence in sequences)
        rows = [[0] * empty + list(sequence) for empty, sequence in zip(padding, sequences, strict=True)]
        return cls(torch.tensor(rows, device=device), padding)

    @classmethod
    def forked(cls, rows: Sequence[Sequence[Ids]], device: torch.device, times: int = 1) -> Batch:
        """Put rows of sequences side by side, what a row's sequences begin with alike there once.

        Args:
            times: how often each row, one after another.
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
        """How many rows."""
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
        """Row and column of each sequence's last token, in their order."""
        if self.forks is not None:
            return self.forks.ends
        row = torch.arange(self.size, device=self.ids.device)
        return row, torch.full_like(row, self.columns - 1)

    def columns_of(self, number: int, begin: int) -> torch.Tensor:
        """The columns of a sequence's tokens from its ``begin``-th on."""
        row, end = (int(places[number]) for places in self.ends)
        if self.forks is None:
            return torch.arange(self.padding[row] + begin, self.columns, device=self.ids.device)
        branch = self.forks.branch[row // self.forks.times]
        seen = (branch == 0) | (branch == branch[end])
        return (seen & (self.forks.places[row] >= begin)).nonzero()[:, 0]

    def mask(self, columns: int, always: bool = False) -> torch.Tensor | None:
        """Which of so many columns hold a token, ``[rows, columns]``; None where all do. Columns to come hold one.

        Args:
            always: where all do, too.
        """
        if not self.padded and not always:
            return None
        empty = torch.tensor(self.padding, device=self.ids.device)
        return torch.arange(columns, device=self.ids.device) >= empty[:, None]

    def position_ids(self, start: int, length: int) -> torch.Tensor:
        """Each token's place in its own sequence, ``[rows, length]``."""
        if self.forks is not None:
            return self.forks.places[:, start : start + length]
        empty = torch.tensor(self.padding, device=self.ids.device)
        return (torch.arange(start, start + length, device=self.ids.device) - empty[:, None]).clamp(min=0)


@dataclass
class _Row:
    """Sequences in one row: tokens, the branch and the place of each, and where the sequences end."""

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
    """Which sequences to put into one row, by their numbers, for the fewest tokens to run.

    They are sorted, and each joins the row of the one before where that spares more.
    """
    rows: list[list[int]] = []
    for number in sorted(range(len(sequences)), key=lambda number: tuple(sequences[number])):
        before = [sequences[member] for member in rows[-1]] if rows else []
        after = [*before, sequences[number]]
        if before and _spared(after) > _spared(before) and may_share(loaded, after):
            rows[-1].append(number)
        else:
            rows.append([number])
    return rows


def may_share(loaded: Loaded, sequences: Sequence[Ids]) -> bool:
    """Whether sequences can stand in one row: attention heeds a mask, the same in all of its layers, and the mask stays small.

    No row is longer than two of its sequences, or than is sensible, for attention and its mask cost the square.
    """
    config, longest = loaded.model.config.get_text_config(), max(map(len, sequences))
    window = getattr(config, "sliding_window", None)  # which the mask does not know
    return (
        config._attn_implementation in ("eager", "sdpa")
        and (window is None or longest <= window)
        and row_length(sequences) <= min(2 * longest, _LONGEST_ROW)
    )


def packed(lengths: Sequence[int], tokens: int, most: int | None = None) -> Iterator[list[int]]:
    """Sequences of like length together, so that little is padded: their numbers, a batch at a time.

    Args:
        tokens: in a batch, padding included, unless a single sequence is longer.
        most: sequences in a batch.
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
    """How many tokens a row of these holds."""
    return sum(map(len, sequences)) - _spared(sequences)


def _spared(sequences: Sequence[Ids]) -> int:
    return (len(sequences) - 1) * shared_tokens(sequences)


def shared_tokens(sequences: Sequence[Ids]) -> int:
    """How many tokens all begin with alike; of several sequences, none's last token counts."""
    most = min(map(len, sequences)) - (len(sequences) > 1)
    return min(most, common_prefix(*sequences))


def read_forward(loaded: Loaded, sequences: Sequence[Ids], visitors: Sequence[Visitor] = ()) -> torch.Tensor:
    """:func:`read_batch` of sequences side by side, one a row."""
    return read_batch(loaded, Batch.of(sequences, loaded.device), visitors)


def read_batch(loaded: Loaded, batch: Batch, visitors: Sequence[Visitor] = ()) -> torch.Tensor:
    """One uncached forward over whole sequences, with visitors attached.

    Every rank calls it with the same batch. Position 0 is the last column, each sequence's last token unless rows fork.

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
    states: torch.Tensor = output.last_hidden_state  # [rows, columns, d]
    return states[batch.ends]
