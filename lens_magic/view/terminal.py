"""A run as a small text table: tokens down, layers across, the most probable token and its probability in each cell."""

from __future__ import annotations

import shutil
import sys
from math import isnan
from typing import TYPE_CHECKING

from ..words import percent
from .text import fitted, visible

if TYPE_CHECKING:
    from .data import Run

_HEAD, _CELL, _NUMBER = 12, 9, 5  # widths in characters: a row's token, a cell's token, its probability


def table_text(run: Run, site: str | None = None, positions: int = 16, layers: int = 8, width: int | None = None) -> str:
    """Return a table of a few positions and layers of one site.

    Args:
        site: by default the last one captured, usually the residual stream.
        positions, layers: how many at most; layers are thinned out evenly, the last always shown.
        width: characters per line, which limits the layers (to two at least); by default the terminal's, if there is one.
    """
    if width is None and sys.stdout is not None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    if width is not None:
        layers = min(layers, max(2, (width - _HEAD - 1) // (_CELL + _NUMBER + 2)))
    data = run.to_xarray()
    site = site or str(data.site.values[-1])
    ids, probabilities = (data[name].sel(site=site).values for name in ("token_id", "prob"))
    numbers, places = data.layer.values.tolist(), data.position.values.tolist()
    rows = range(len(places))[:positions]
    columns = thinned(len(numbers), layers)

    def cell(layer: int, row: int) -> str:
        text = visible(run.candidate_texts.get(int(ids[layer, row, 0]), ""))
        probability = float(probabilities[layer, row, 0])
        number = "–" if isnan(probability) else f"{percent(probability)}%"
        return f"{fitted(text, _CELL)}{number:>{_NUMBER}}"

    header = f"{'token':>{_HEAD}} │ " + "  ".join(f"{f'layer {numbers[c]}':{_CELL + _NUMBER}}" for c in columns)
    lines = [f"{_target(run, places[row])} │ " + "  ".join(cell(column, row) for column in columns) for row in rows]
    more = len(places) - len(rows)
    title = f"{run.model}, {site}: most probable next token by layer"
    rest = [f"… and {more} more tokens"] if more > 0 else []
    return "\n".join(line.rstrip() for line in [title, header, "─" * len(header), *lines, *rest])


def thinned(count: int, most: int) -> list[int]:
    """Return at most `most` (two or more) evenly spread indices below `count`, including the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def _target(run: Run, position: int) -> str:
    """The token that came next, as text."""
    index = run.output_ids[position] if position >= 0 else run.prompt_ids[len(run.prompt_ids) + position]
    return fitted(visible(run.token_texts.get(index, "")), _HEAD, right=True)
