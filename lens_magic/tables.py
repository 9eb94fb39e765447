"""Small HTML tables, for the ``_repr_html_`` of values."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def as_html(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    tips: Sequence[str] = (),
    below: Sequence[str] = (),
) -> str:
    """Return a titled table, all of whose text is escaped; the title alone if there are no columns.

    Lines do not wrap: a wide table scrolls.

    Args:
        tips: what each column means, shown as a tooltip of its header.
        below: lines under the table.
    """
    titles = [f' title="{escape(tip)}"' for tip in tips] or [""] * len(header)
    whole = 'style="white-space:nowrap"'  # on each cell, because JupyterLab styles each
    head = "".join(f'<th scope="col" {whole}{tip}>{escape(name)}</th>' for name, tip in zip(header, titles, strict=True))
    body = "".join("<tr>" + "".join(f"<td {whole}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    lines = "".join(f"<div>{escape(line)}</div>" for line in below)
    shown = f'<div style="overflow-x:auto">{table}</div>' * bool(header)
    return f'<div style="font-size:0.9em"><div>{escape(title)}</div>{shown}{lines}</div>'


def frame_as_html(title: str, frame: pd.DataFrame) -> str:
    """Return such a table of a DataFrame of texts, with its index in front."""
    flat = frame.reset_index()
    return as_html(title, [str(name) for name in flat.columns], [list(map(str, row)) for row in flat.itertuples(index=False)])
