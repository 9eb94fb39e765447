"""A run as a small text table: tokens down, layers across, the most probable token and its probability in each cell."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING

from ..lens.made import how_made
from ..words import counted, percent
from .text import fitted, minus, visible

if TYPE_CHECKING:
    from ..lens.run import LensRun

_HEAD, _CELL, _NUMBER = 12, 9, 5  # widths in characters: a row's token, a cell's token, its probability
_ROWS, _LAYERS = 16, 8  # at most
_BEFORE = 4  # rows of the prompt kept before the first generated token's


def table_text(run: LensRun) -> str:
    """Return a table of a few positions and layers of the last site captured, usually the residual stream.

    The generated tokens come before the prompt's (`by_need`), layers are thinned out evenly, the last always shown. A
    terminal's width limits the layers, to two at least.
    """
    layers = _LAYERS
    if sys.stdout is not None and sys.stdout.isatty():
        layers = min(layers, max(2, (shutil.get_terminal_size().columns - _HEAD - 1) // (_CELL + _NUMBER + 2)))
    data = run.to_xarray()
    site = str(data.site.values[-1])
    ids, probabilities = (data[name].sel(site=site).values for name in ("token_id", "prob"))
    numbers, places = data.layer.values.tolist(), data.position.values.tolist()
    rows = sorted(by_need(places)[:_ROWS])
    columns = thinned(len(numbers), layers)

    def cell(layer: int, row: int) -> str:
        text = visible(run.candidate_texts.get(int(ids[layer, row, 0]), ""))
        probability = float(probabilities[layer, row, 0])
        number = "–" if isnan(probability) else f"{percent(probability)}%"
        return f"{fitted(text, _CELL)}{number:>{_NUMBER}}"

    header = f"{'token':>{_HEAD}} │ " + "  ".join(f"{f'layer {numbers[c]}':{_CELL + _NUMBER}}" for c in columns)
    title = f"{run.model}, {site}: most probable next token by layer"
    lines: list[str] = []
    if 0 < len(rows) < len(places):
        title += f", positions {span([places[row] for row in rows])}"
    if how := how_made(run.options):
        title += f" · {how}"
    for row in rows:
        if lines and places[row] == 0:
            lines.append("┄" * len(header))  # generation begins
        lines.append(f"{_target(run, places[row])} │ " + "  ".join(cell(column, row) for column in columns))
    before, after = (rows[0], len(places) - 1 - rows[-1]) if rows else (0, len(places))
    above = [f"… {counted(before, 'earlier token')}"] if before else []
    below = [f"… and {counted(after, 'more token')}"] if after else []
    return "\n".join(line.rstrip() for line in [title, header, "─" * len(header), *above, *lines, *below])


def thinned(count: int, most: int) -> list[int]:
    """Return at most `most` (two or more) evenly spread indices below `count`, including the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def by_need(positions: Sequence[int]) -> list[int]:
    """Return the rows' indices in the order in which a table without room for all of them takes them.

    First the generated tokens with the last few of the prompt before them, then the prompt's others, the last first. Any
    number of these is one stretch. A prompt after which nothing was generated is taken from its beginning.
    """
    begin = next((row for row, position in enumerate(positions) if position >= 0), 0)
    first = max(0, begin - _BEFORE)
    return [*range(first, len(positions)), *reversed(range(first))]


def span(positions: Sequence[int]) -> str:
    """Return the first and the last of these, as in ``−4 to 11``; one alone stays alone."""
    return " to ".join(minus(str(p)) for p in dict.fromkeys([positions[0], positions[-1]]))


def _target(run: LensRun, position: int) -> str:
    """The token that came next, as text."""
    index = run.output_ids[position] if position >= 0 else run.prompt_ids[len(run.prompt_ids) + position]
    return fitted(visible(run.token_texts.get(index, "")), _HEAD, right=True)
