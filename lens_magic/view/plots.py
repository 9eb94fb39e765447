"""Figures of a run for papers and slides, as matplotlib Figures that are not registered with pyplot."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LensError
from ..lens.made import how_made
from ..options import choice, flag, integer, integers, token_ids
from ..words import counted, quoted
from .data import FIRST_DIRECTION, drawn
from .figure import Palette, label, panels, styled
from .text import minus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..lens.run import LensRun

_MOST_CELLS = 4000
_FOLLOWS = "; lens.run(…, track=…) follows any"
_DASHES = ("-", "--", ":", "-.")  # lines beyond the number of colours begin again with another of these
_LEGEND_ROWS = 12
_MOST_ACROSS = 3  # panels of a token's sites
_LEAST_RANKS = 10  # on the scale of trajectories, so that lines that are first everywhere have one
_TITLES = {
    "resid_pre": "block input",
    "attn_out": "attention",
    "post_ln": "MLP input",
    "mlp_out": "MLP",
    "resid_post": "residual stream",
}


def _known(ranks: np.ndarray) -> np.ndarray:
    """Ranks as float64, NaN where missing (negative)."""
    return np.where(ranks < 0, np.nan, ranks)


@dataclass(frozen=True)
class Shade:
    """A heatmap's shading.

    Attributes:
        variable: of the cells.
        title: on the scale.
        ranks: whether it is a rank, shaded by order of magnitude, and most where it is 0.
        unsure: whether a great number is one of a model that is unsure.
    """

    variable: str
    title: str
    ranks: bool = False
    unsure: bool = False

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Return what is shaded, of the variable's values."""
        return np.log10(1 + _known(values)) if self.ranks else values


SHADES = {
    "prob": Shade("prob", "probability of the top token"),
    "entropy": Shade("entropy", "entropy (nats)", unsure=True),
    "target_rank": Shade("target_rank", "rank of the next token, 0 is first", ranks=True),
    "kl_final": Shade("kl_final", "KL(output ‖ cell) (nats)", unsure=True),
    "target_prob": Shade("target_prob", "probability of the next token"),
}


def plot(run: LensRun, kind: str = "heatmap", dark: bool = False, /, **options: Any) -> Figure:
    """See :meth:`lens_magic.lens.run.LensRun.plot`."""
    kinds: dict[str, Callable[..., Figure]] = {
        "heatmap": heatmap,
        "token": one_token,
        "trajectories": trajectories,
        "entropy": by_layer,
    }
    if not isinstance(kind, str) or kind not in kinds:
        raise LensError(f"there is no figure {kind!r}; {', '.join(kinds)} are there")
    known = list(inspect.signature(kinds[kind]).parameters)[2:]
    for name in options:
        if name not in known:
            raise LensError(f"the figure {kind!r} has no option {name}; it has {', '.join(known) or 'none'}")
    with styled(flag("dark", dark)) as palette:
        return kinds[kind](drawn(run), palette, **options)


def heatmap(
    run: LensRun,
    palette: Palette,
    site: str | None = None,
    shade: str = "prob",
    positions: Sequence[int] | int | None = None,
    annotate: bool | None = None,
) -> Figure:
    """Draw tokens down and layers across; cells show their top token if there are at most 600, or as ``annotate`` says."""
    choice("shade", shade, tuple(SHADES))
    s = _site(run, site)
    rows = [_row(run, p) for p in (run.positions if positions is None else integers("positions", positions))]
    cells = len(rows) * len(run.layers)
    if not rows or cells > _MOST_CELLS:
        raise LensError(f"{cells} cells are not what a figure can show; name fewer positions=…: 1 to {_MOST_CELLS} cells")
    written = cells <= 600 if annotate is None else flag("annotate", annotate)
    across = 0.72 if written else 0.16  # inches
    figure, (axes,) = panels([1.6 + len(run.layers) * across], 1.3 + len(rows) * 0.2)
    shading = SHADES[shade]
    values = _cells(run, shading)[s][:, rows].T  # [position, layer]
    colours = palette.unsure_map if shading.unsure else f"{palette.sure}_r" if shading.ranks else palette.sure
    image = axes.imshow(values, aspect="auto", cmap=colours, interpolation="nearest", **_limits(shade, values))
    if written:
        _write(axes, image, run.variables["token_id"][s][:, rows, 0].T, run)
    _layers_across(axes, run, across)
    targets = run.targets
    axes.set_yticks(range(len(rows)), [label(_text(run, targets[row])) for row in rows])
    axes.set(ylabel="next token", title=_title(figure, run, _TITLES.get(run.sites[s], run.sites[s])))
    scale = figure.colorbar(image, ax=axes, label=shading.title, shrink=0.8)
    if shading.ranks:
        shown = [0, *(10**power for power in range(int(image.norm.vmax) + 1))]
        scale.set_ticks(np.log10(1 + np.array(shown)), labels=[f"{rank:,}" for rank in shown])
    return figure


def one_token(run: LensRun, palette: Palette, position: int | None = None) -> Figure:
    """Draw all sites of one position side by side: layers down, the k candidates across (Figure 2 of the paper)."""
    row = _row(run, run.positions[-1] if position is None else position)
    k, sites = run.variables["token_id"].shape[-1], len(run.sites)
    rows = -(-sites // _MOST_ACROSS)
    across = -(-sites // rows)
    figure, all_axes = panels([0.5 + 0.85 * k] * across, 1.2 + 0.24 * len(run.layers), rows)
    for axes in all_axes[sites:]:
        axes.remove()
    for s, axes in enumerate(all_axes[:sites]):
        image = axes.imshow(
            run.variables["prob"][s][:, row], aspect="auto", cmap=palette.sure, vmin=0, vmax=1, interpolation="nearest"
        )
        _write(axes, image, run.variables["token_id"][s][:, row], run)
        axes.set_xticks(range(k), [str(place + 1) for place in range(k)])
        first = s % across == 0
        axes.set_yticks(range(len(run.layers)), [str(layer) for layer in run.layers] if first else [])
        axes.set(xlabel="candidate", title=_TITLES.get(run.sites[s], run.sites[s]), ylabel="layer" if first else "")
    figure.colorbar(image, ax=all_axes[:sites], label="probability", shrink=0.8)
    figure.suptitle(f"before {label(_target(run, row), 30)}, position {run.positions[row]}{_made(figure, run)}")
    return figure


def trajectories(
    run: LensRun, palette: Palette, position: int | None = None, tokens: Any = None, site: str | None = None
) -> Figure:
    """Draw probability and rank of tokens across layers at one position: tracked tokens, else those first in any layer.

    Unless they are named, the first six are drawn, and the legend says of how many. A token that was not tracked is known only
    where it is a candidate or the next token; its line is broken elsewhere.
    """
    s, row = _site(run, site), _row(run, run.positions[-1] if position is None else position)
    leaders = list(dict.fromkeys(run.variables["token_id"][s][::-1, row, 0].tolist()))
    found = _tracked(run, row) or leaders
    chosen = found[: len(palette.lines)] if tokens is None else _named(run, tokens)
    if len(chosen) > (most := len(palette.lines) * len(_DASHES)):
        raise LensError(f"{len(chosen)} lines could not be told apart; name at most {most} tokens=…")
    figure, (left, right) = panels([4.2, 4.2], 3.0)
    lowest = _LEAST_RANKS
    for number, token in enumerate(chosen):
        prob, rank = _followed(run, s, row, token)
        name = label(_text(run, token))
        name = f" {name}" if name.startswith("_") else name  # matplotlib leaves such labels out of legends
        dash, colour = divmod(number, len(palette.lines))
        style = {"color": palette.lines[colour], "ls": _DASHES[dash], "marker": "o", "markersize": 3, "label": name}
        left.plot(run.layers, prob, **style)
        right.plot(run.layers, rank, **style)
        lowest = max(lowest, int(np.nanmax(rank, initial=0)))
    left.set(ylabel="probability", ylim=(-0.02, 1.02))
    right.set_yscale("symlog", linthresh=1)
    right.set(ylabel="rank, 0 is first", ylim=(1.3 * lowest, -0.2))
    right.yaxis.set_major_formatter(lambda rank, _: f"{rank:g}")
    for axes in (left, right):
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
    columns = -(-len(chosen) // _LEGEND_ROWS)
    figure.set_figwidth(figure.get_figwidth() + 1.4 * columns)
    figure.legend(
        handles=left.lines,
        loc="outside right center",  # beside the lines, which are anywhere
        ncols=columns,
        handlelength=3,
        frameon=False,
        fontsize=8,
        title=f"{len(chosen)} of {len(found)}" if tokens is None and len(found) > len(chosen) else None,
        title_fontsize=8,
    )
    title = _TITLES.get(run.sites[s], run.sites[s])
    what = f"before {label(_target(run, row), 30)}, position {run.positions[row]}, {title}"
    figure.suptitle(f"{what}{_made(figure, run)}")
    return figure


def by_layer(run: LensRun, palette: Palette) -> Figure:
    """Draw entropy by layer: the mean over positions, with the interquartile range."""
    figure, (axes,) = panels([4.6], 3.0)
    for number, site in enumerate(run.sites):
        entropy = run.variables["entropy"][number]  # [layer, position]
        low, mean, high = _spread(entropy)
        colour = palette.lines[number % len(palette.lines)]
        axes.fill_between(run.layers, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(run.layers, mean, color=colour, marker="o", markersize=3, label=_TITLES.get(site, site))
    title = _title(figure, run, counted(len(run.positions), "position"))
    axes.set(xlabel="layer", ylabel="entropy (nats)", ylim=(0, None), title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _title(figure: Figure, run: LensRun, what: str) -> str:
    """The model, a folder by its last part alone and cut to what the figure's width has room for, and what is shown of it."""
    path = Path(run.model)
    folder = path.is_absolute() or run.model.startswith((".", "~")) or run.model.count("/") > 1
    room = int(10 * figure.get_figwidth()) - len(what)  # characters
    return f"{label((folder and path.name) or run.model, room)}, {what}{_made(figure, run)}"


def _made(figure: Figure, run: LensRun) -> str:
    """How the run was made, as another line of a title, cut to the figure's width; "" for a plain run."""
    how = minus(how_made(run.options))
    return f"\n{label(how, int(10 * figure.get_figwidth()), keep=' ')}" if how else ""


def _spread(values: np.ndarray) -> np.ndarray:
    """Lower quartile, mean and upper quartile of each row's numbers, ``[3, row]``; NaN where a row has none."""
    rows = [row[~np.isnan(row)] for row in values]
    none = (np.nan,) * 3
    return np.array([(np.quantile(r, 0.25), r.mean(), np.quantile(r, 0.75)) if r.size else none for r in rows]).T


def _cells(run: LensRun, shade: Shade) -> np.ndarray:
    """The shading value of every cell, ``[site, layer, position]``."""
    values = run.variables[shade.variable]
    return shade.scaled(values[..., 0] if values.ndim == 4 else values)


def _limits(shade: str, values: np.ndarray) -> dict[str, float]:
    return {"vmin": 0, "vmax": 1} if "prob" in shade else {"vmin": 0, "vmax": float(np.nanmax(values, initial=1e-9))}


def _write(axes: Any, image: Any, ids: np.ndarray, run: LensRun) -> None:
    """Write each cell's token in its centre, in black or white, whichever has more contrast: at least 4.5:1 (WCAG 2)."""
    shaded = image.cmap(image.norm(image.get_array()))
    # A cell without a number is transparent: the background shows through.
    colours = np.where(shaded[..., 3:] > 0, shaded, axes.get_facecolor())[..., :3]
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    bright = linear @ np.array([0.2126, 0.7152, 0.0722]) > 0.179  # the luminance at which both have the same contrast
    for (row, column), token in np.ndenumerate(ids):
        ink = "#000000" if bright[row, column] else "#ffffff"
        axes.text(column, row, label(_text(run, int(token)), 9), ha="center", va="center", fontsize=7, color=ink)


def _tracked(run: LensRun, row: int) -> list[int]:
    """The tokens that were tracked at a position."""
    ids = run.variables.get("tracked_id")
    return [] if ids is None else [index for index in ids[row].tolist() if index >= 0]


def _followed(run: LensRun, s: int, row: int, token: int) -> tuple[np.ndarray, np.ndarray]:
    """A token's probability and rank at every layer; NaN where the run does not know them."""
    if token in (track := _tracked(run, row)):
        prob, rank = (run.variables[name][s][:, row, track.index(token)] for name in ("tracked_prob", "tracked_rank"))
        return prob.astype(float), _known(rank)
    probs = run.variables["prob"][s][:, row]  # [layer, k]
    here = (run.variables["token_id"][s][:, row] == token) & ~np.isnan(probs)
    known = here.any(-1)
    prob = np.where(known, np.where(here, probs, 0).sum(-1), np.nan)
    rank = np.where(known, here.argmax(-1), np.nan)
    if token == run.targets[row]:
        return run.variables["target_prob"][s][:, row].astype(float), _known(run.variables["target_rank"][s][:, row])
    return prob, rank


def _layers_across(axes: Any, run: LensRun, column: float) -> None:
    """Name the layers, as many as columns of this width in inches have room for."""
    step = math.ceil((0.05 + 0.07 * len(str(run.layers[-1]))) / column)
    axes.set_xticks(range(0, len(run.layers), step), [str(layer) for layer in run.layers[::step]])
    axes.set_xlabel("layer")


def _site(run: LensRun, site: str | None) -> int:
    wanted = site if site is not None else "resid_post" if "resid_post" in run.sites else run.sites[0]
    if wanted not in run.sites:
        raise LensError(f"site {wanted!r} was not captured in this run; captured: {', '.join(run.sites)}")
    return run.sites.index(wanted)


def _row(run: LensRun, position: int) -> int:
    position = integer("position", position)
    if position not in run.positions:
        raise LensError(f"position {position} is not in this run; {run.positions[0]} to {run.positions[-1]} are")
    return run.positions.index(position)


def _named(run: LensRun, tokens: Any) -> list[int]:
    """The tokens (or directions, by their numbers here) that a user names by text or id."""
    first = FIRST_DIRECTION if max(run.token_texts, default=0) >= FIRST_DIRECTION else 0  # through a basis
    texts = {index - first: text for index, text in run.token_texts.items() if index >= first}
    kind = "direction" if first else "token"

    def read(text: str) -> int:
        found = [index for index, own in texts.items() if own == text]
        if not found:
            spaced = f"; with a space before it, {f' {text}'!r}, one does" if f" {text}" in texts.values() else ""
            raise LensError(f"no {kind} of this run reads {quoted(text)}{spaced or _FOLLOWS}")
        if len(found) > 1:
            raise LensError(f"several {kind}s of this run read {quoted(text)}; ids would do: {', '.join(map(str, found[:8]))}")
        return found[0]

    chosen = token_ids("tokens", tokens, read)
    if not chosen:
        raise LensError(f"no {kind}s were named; texts or ids would do, and by default the figure chooses")
    for index in chosen:
        if index not in texts:
            raise LensError(f"{kind} {index} does not occur in this run{_FOLLOWS}")
    return [first + index for index in chosen]


def _target(run: LensRun, row: int) -> str:
    return _text(run, run.targets[row])


def _text(run: LensRun, token: int) -> str:
    return run.token_texts.get(token, f"#{token}")
