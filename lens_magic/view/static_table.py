"""A run as a compact HTML table without scripts, by itself or as what a widget leaves for readers without one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from ..words import counted, percent
from .data import Packed, Shown, pack, unpack
from .terminal import by_need, span, table_text, thinned
from .text import NO_MATH, SPACE, visible

if TYPE_CHECKING:
    from ..lens.run import LensRun

MAX_BYTES = 150_000
MAX_LAYERS = 24
FEW_POSITIONS = 16
HINTS = 10

# A table in a saved notebook cannot know its host's background, light or dark: translucent shading and inherited or system
# colours are readable on any. GitHub drops the style sheet, so every cell also states its probability.
_STYLE = """
<style>
.lens-static{font:13px/1.4 system-ui,sans-serif;max-width:100%;print-color-adjust:exact}
.lens-static p{margin:4px 0;opacity:.8;font-size:12px}
.lens-static .lens-box{width:fit-content;max-width:100%;box-sizing:border-box;overflow:auto;max-height:460px;
border:1px solid rgba(128,128,128,.35);border-radius:6px}
.lens-static table{border-collapse:separate;border-spacing:0;margin:0;
font:12px/1.3 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.lens-static .lens-box th,.lens-static .lens-box td{padding:3px 7px;text-align:left;white-space:nowrap;
max-width:150px;overflow:hidden;text-overflow:ellipsis;unicode-bidi:isolate;border:0;
border-right:1px solid transparent;font-weight:400}
.lens-static .lens-box th{position:sticky;left:0;z-index:1;
color:var(--jp-content-font-color1,var(--vscode-editor-foreground,CanvasText));
background:var(--jp-layout-color0,var(--vscode-editor-background,Canvas))}
.lens-static .lens-box thead th{top:0;left:auto;border-bottom:1px solid rgba(128,128,128,.35)}
.lens-static .lens-box thead th:first-child{left:0;z-index:2}
.lens-static .lens-box tbody th{font-weight:600;border-right:1px solid rgba(128,128,128,.35)}
.lens-static .lens-box tr:nth-child(n){background:none}
.lens-static .lens-box .lens-first>*{border-top:2px solid rgba(128,128,128,.35)}
.lens-static small{font-weight:400}
.lens-static th small{opacity:.75}
.lens-static u{text-decoration:underline 2px;text-underline-offset:3px}
.lens-static summary{cursor:pointer;margin:4px 0}
@media print{.lens-static .lens-box{max-height:none;overflow:visible}}
</style>"""


_FALLBACK_STYLE = """<style>
@keyframes lens-late{from,to{max-height:0;overflow:hidden}}
.lens-fallback{animation:lens-late 1ms 1.2s backwards}
.jp-OutputArea-child:has(+.jp-OutputArea-child .lens-fallback)>.jupyter-widgets:not(:has(*)){display:none}
</style>"""


def table_html(run: LensRun, max_bytes: int = MAX_BYTES) -> str:
    """Return the top tokens as one HTML fragment of at most `max_bytes` bytes: inline style, no script, no links.

    Layers are thinned out evenly to at most 24, keeping the first and the last. If the table is still too large, all sites
    but one are left out (`resid_post` if captured, else the first), then positions: the prompt's first ones, all but a few,
    then from the end. The caption says what is left out.
    """
    return _Table(run, run.model).html(max_bytes)


def tables_html(shown: Sequence[Shown], max_bytes: int = MAX_BYTES) -> str:
    """Return `table_html` of each run, together at most `max_bytes` bytes."""
    return "".join(_Table(one.run, one.name or one.run.model).html(max_bytes // len(shown)) for one in shown)


def fallback_html(shown: Sequence[Shown], widget: str) -> str:
    """Return `tables_html` as a widget's fallback."""
    return as_fallback(tables_html(shown, MAX_BYTES - 1000), widget)


def as_fallback(html: str, widget: str) -> str:
    """Return HTML as a widget's fallback: hidden by the live widget of that name, and by nothing else.

    It appears after a delay, so as not to flash while the widget loads, and replaces JupyterLab's "model not found" right
    above it.
    """
    return f'{_FALLBACK_STYLE}<div class="lens-fallback" data-lens-for="{escape(widget)}">{html}</div>'


class StaticTable:
    """`table_html` as an object that Jupyter displays."""

    def __init__(self, run: LensRun) -> None:
        self._html = table_html(run)
        self._text = table_text(run)

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return self._text


# Scrolled by keyboard, with the arrow keys, which JupyterLab would otherwise take for itself.
_SCROLLS = 'tabindex="0" data-lm-suppress-shortcuts="true"'


@dataclass(frozen=True)
class _Table:
    run: LensRun
    name: str

    @cached_property
    def packed(self) -> Packed:
        return pack(self.run)

    @cached_property
    def shown(self) -> list[str]:
        return [_token(text) for text in self.packed.header["tokens"]]

    @cached_property
    def places(self) -> list[int]:
        """Indices of the positions, in the order in which they are taken as long as there is room."""
        return by_need(self.packed.header["positions"])

    @cached_property
    def prob(self) -> np.ndarray:
        return unpack(self.packed)["prob"]

    def html(self, max_bytes: int) -> str:
        header = self.packed.header
        positions, sites = header["positions"], header["sites"]
        name = escape(_cut(visible(self.name, keep=" "), 100))
        if not (positions and sites and header["layers"] and header["k"]):
            return f'<div class="lens-static {NO_MATH}"><p><b>{name}</b>: no positions, so there is nothing to show.</p></div>'
        layers = thinned(len(header["layers"]), MAX_LAYERS)
        room = max_bytes - len(_STYLE) - 1200
        order = sorted(range(len(sites)), key=lambda s: (sites[s] != "resid_post", s))
        # Several sites only if each still shows a few positions in its share of the bytes.
        tables, shown = self._tables(order, layers, room)
        if len(order) > 1 and len(shown) < min(len(positions), FEW_POSITIONS):
            order = order[:1]
            tables, shown = self._tables(order, layers, room)
        caption = self._caption(name, shown, layers, [sites[s] for s in order])
        return "".join([f'<div class="lens-static {NO_MATH}">{_STYLE}', caption, *tables, "</div>"])

    def _caption(self, name: str, shown: Sequence[int], layers: Sequence[int], sites: Sequence[str]) -> str:
        header = self.packed.header
        positions, all_layers = header["positions"], header["layers"]
        which = f"{all_layers[0]}–{all_layers[-1]}" if len(all_layers) > 1 else f"{all_layers[0]}"
        if len(layers) < len(all_layers):
            which += f" ({len(layers)} of {len(all_layers)})"
        if len(sites) < len(header["sites"]):
            which += f", site {escape(', '.join(sites))} ({len(sites)} of {len(header['sites'])})"
        where = f"{len(shown):,} of {counted(len(positions), 'position')}"
        if 0 < len(shown) < len(positions):
            where += f" ({span([positions[p] for p in shown])})"
        note = " · interrupted" if header["interrupted"] else ""
        how = f" · {escape(header['how'])}" if header["how"] else ""
        return (
            f"<p><b>{name}</b>{how} · static view: {where}, layers {which}{note}; "
            "<code>run.to_html(path)</code> for everything. Each cell: the top token and its probability in percent; "
            "<u>underlined</u> where it is the token that came next.</p>"
        )

    def _tables(self, order: Sequence[int], layers: Sequence[int], room: int) -> tuple[list[str], list[int]]:
        """Return one table per site, all with the same positions, and the indices of these positions."""
        share = room // len(order)
        rows = [self._rows(site, layers, share) for site in order]
        shown = sorted(self.places[: min(len(r) for r in rows)])
        tables = [
            self._site(site, layers, [r[p] for p in shown], first=site == order[0]) for site, r in zip(order, rows, strict=True)
        ]
        return tables, shown

    def _site(self, site: int, layers: Sequence[int], rows: Iterable[str], first: bool) -> str:
        header = self.packed.header
        name = escape(header["sites"][site])
        heads = "".join(f"<th>{header['layers'][x]}</th>" for x in layers)
        return (
            f"<details{' open' if first else ''}><summary><code>{name}</code></summary>"
            f'<div class="lens-box" role="group" aria-label="Top tokens of {name}" {_SCROLLS}><table>'
            f"<thead><tr><th>next token / layer</th>{heads}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div></details>"
        )

    def _rows(self, site: int, layers: Sequence[int], room: int) -> dict[int, str]:
        """Return the rows that have room, by the indices of their positions."""
        rows: dict[int, str] = {}
        for p in self.places:
            row = self._row(site, layers, p)
            room -= len(row.encode())
            # 600 bytes stay free for the table around the rows. Even the first row is left out if it does not fit.
            if room < 600:
                break
            rows[p] = row
        return rows

    def _row(self, site: int, layers: Sequence[int], p: int) -> str:
        header = self.packed.header
        target = header["targets"][p]
        label = self.shown[target] if target >= 0 else ""
        number = span([header["positions"][p]])
        begins = ' class="lens-first"' if header["positions"][p] == 0 and p > 0 else ""
        cells = "".join(self._cell(site, layer, p, target) for layer in layers)
        return f"<tr{begins}><th><small>{number}</small> {label}</th>{cells}</tr>\n"

    def _cell(self, site: int, layer: int, p: int, target: int) -> str:
        header = self.packed.header
        tokens = self.packed.buffers["token"][site, layer, p]
        probs = self.prob[site, layer, p]
        if np.isnan(probs[0]):
            return "<td>–</td>"
        text = self.shown[tokens[0]]
        if tokens[0] == target:
            text = f"<u>{text}</u>"
        names = [escape(_cut(header["tokens"][t])) for t in tokens[:HINTS]]
        # The number comes first: after right-to-left text it would be drawn on the wrong side.
        hint = "&#10;".join(f"{_percent(q)} {name}" for name, q in zip(names, probs, strict=False))
        shade = f"{0.5 * probs[0]:.2f}".lstrip("0")
        number = f"<small>{escape(percent(probs[0]))}</small>"
        return f'<td style="background:rgba(64,132,240,{shade})" title="{hint}">{text} {number}</td>'


def _percent(p: float) -> str:
    return escape(f"{percent(p, 1)}%") if p >= 0.001 else "&lt;0.1%"


def _cut(text: str, most: int = 20) -> str:
    return text if len(text) <= most else text[:most] + "…"


def _token(text: str) -> str:
    """Return a token as markup, isolated from its neighbours (`<bdi>`) if it could be right-to-left."""
    escaped = escape(_cut(text))
    return escaped if text.isascii() or (text[0] == SPACE and text[1:].isascii()) else f"<bdi>{escaped}</bdi>"
