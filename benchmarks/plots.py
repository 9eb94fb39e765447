"""Plots of the results, as SVG that is readable on light and dark pages."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .plan import BARE, OURS, RESIDUAL
from .store import Cell
from .tables import groups, grown, ratios, wall

COLORS = {
    OURS: "#0b7a75",
    "published": "#c8553d",
    "eager": "#d8973c",
    "generate": "#777777",
    "afterwards-hooked": "#5b6ee1",
    "deferred": "#9a4f96",
    BARE: "#86c5c1",
    RESIDUAL: "#45a29d",
    "afterwards": "#a4aef0",
    "nnsight": "#6b4f2a",
    "transformer-lens": "#b79a6b",
}
LABELS = {
    OURS: "lens-magic",
    "published": "(a) LogitLens4LLMs",
    "eager": "(b) cached, eager projection",
    "generate": "(c) transformers, no lens",
    "afterwards-hooked": "(d′) one more forward",
    "deferred": "(f) the paper's method",
    BARE: "lens-magic, no lens",
    RESIDUAL: "lens-magic, resid_post",
    "afterwards": "(d) one more forward, resid_post",
    "nnsight": "(e) nnsight",
    "transformer-lens": "(e) TransformerLens",
}
AGAINST_TOKENS = (OURS, "published", "eager", "generate", "afterwards-hooked", "deferred")
"""The methods drawn against T: more lines could not be told apart."""

WORDS = {
    "bench-speed": "Seconds against T, each method, and how many times longer LogitLens4LLMs takes",
    "bench-memory": "Peak memory of each method",
    "bench-scaling": "Seconds against ranks, layers and vocabulary",
}
"""What each plot shows, by its file's name."""


def draw(results: dict[str, list[Cell]], into: Path) -> list[Path]:
    """Write every plot that has results; return their paths."""
    results = {suite: [cell for cell in cells if cell.samples] for suite, cells in results.items()}
    if not any(results.values()):
        return []
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "lens-magic", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    into.mkdir(parents=True, exist_ok=True)
    made = []
    if cells := [*results.get("speed", []), *results.get("lengths", [])]:
        made.append(_against_tokens(cells, into / "bench-speed.svg"))
    if cells := results.get("memory", []):
        made.append(_memory(cells, into / "bench-memory.svg"))
    if cells := results.get("scaling", []):
        made.append(_scaling(cells, into / "bench-scaling.svg"))
    return made


def _save(figure: Any, path: Path, legend_of: Any) -> Path:
    """Write the figure with one legend, below it."""
    import matplotlib.pyplot as plt

    handles, labels = legend_of.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)
    return path


def _line(axes: Any, points: Sequence[tuple[float, list[float]]], method: str) -> None:
    """Medians, with the range of all samples."""
    points = sorted((at, values) for at, values in points if values)
    if not points:
        return
    middle = [statistics.median(values) for _, values in points]
    below = [m - min(values) for m, (_, values) in zip(middle, points, strict=True)]
    above = [max(values) - m for m, (_, values) in zip(middle, points, strict=True)]
    axes.errorbar(
        [at for at, _ in points], middle, (below, above), marker="o", markersize=3, capsize=2, lw=1.2,
        color=COLORS.get(method), label=LABELS.get(method, method),
    )  # fmt: skip


def _against_tokens(cells: list[Cell], path: Path) -> Path:
    import matplotlib.pyplot as plt

    lengths = {(cell.ranks, cell.tokens) for cell in cells if cell.model == "demo"}
    everywhere = sorted({ranks for ranks, _ in lengths})
    # A single length makes no line; its ratio is still a point of the last panel.
    counts = [ranks for ranks in everywhere if sum(one == ranks for one, _ in lengths) > 1] or everywhere
    figure, panels = plt.subplots(1, len(counts) + 1, figsize=(3.3 * (len(counts) + 1), 3.4), layout="constrained")
    for axes, ranks in zip(panels, counts, strict=False):
        for method in AGAINST_TOKENS:
            chosen = [c for c in cells if (c.model, c.ranks, c.method) == ("demo", ranks, method)]
            _line(axes, [(c.tokens, [wall(s) for s in c.samples]) for c in chosen], method)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="generated tokens T",
            ylabel="seconds",
            title=f"demo, {_ranks(ranks)}",
        )
        ticks = sorted(tokens for one, tokens in lengths if one == ranks)
        # No label if the previous one is too close for both to be readable.
        labels = [
            f"{tokens:,}" if number == 0 or tokens > 1.35 * ticks[number - 1] else "" for number, tokens in enumerate(ticks)
        ]
        axes.set_xticks(ticks, labels)
        axes.xaxis.minorticks_off()
    for ranks in everywhere:
        found = groups(c for c in cells if (c.model, c.ranks) == ("demo", ranks))
        points = [(key[3], ratios(group.get("published"), group.get(OURS), wall)) for key, group in found.items()]
        _line(panels[-1], points, _ranks(ranks))
    panels[-1].axhline(41, color="#777777", lw=0.8, ls="--")
    panels[-1].text(0.02, 41, "the paper's 41", fontsize=7, va="bottom", transform=panels[-1].get_yaxis_transform())
    panels[-1].set(xlabel="generated tokens T", ylabel="(a) ÷ lens-magic", title="growth with T", ylim=(0, None))
    if panels[-1].get_legend_handles_labels()[0]:
        panels[-1].legend(fontsize=8, frameon=False)
    return _save(figure, path, panels[0])


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count > 1)}"


def _memory(cells: list[Cell], path: Path) -> Path:
    import matplotlib.pyplot as plt

    found = {key: group for key, group in groups(cells).items() if OURS in group and group[OURS].samples}
    most = max((len(group) for group in found.values()), default=1)
    step = 0.84 / most
    figure, axes = plt.subplots(figsize=(7, 1.4 + 0.12 * most * len(found)), layout="constrained")
    ticks = []
    for row, (key, group) in enumerate(sorted(found.items(), reverse=True)):
        for place, (method, cell) in enumerate(group.items()):
            if cell.samples:
                size = statistics.median(grown(s) for s in cell.samples) / 1e6
                axes.barh(
                    row + 0.42 - step * (place + 0.5),
                    size,
                    0.88 * step,
                    color=COLORS.get(method),
                    label=LABELS.get(method, method) if row == len(found) - 1 else None,
                )
        ticks.append(f"{key[0]}, {_ranks(key[2])}, T = {key[3]}")
    axes.set(
        xscale="log",
        xlim=(1, None),
        ylim=(-0.5, len(ticks) - 0.5),
        xlabel="peak beyond the loaded model, MB a rank (logarithmic)",
        yticks=range(len(ticks)),
        yticklabels=ticks,
    )
    return _save(figure, path, axes)


def _scaling(cells: list[Cell], path: Path) -> Path:
    import matplotlib.pyplot as plt

    lengths = ", ".join(str(tokens) for tokens in sorted({c.tokens for c in cells if c.model == "demo"}))
    panels: list[tuple[str, str, Callable[[Cell], int | None]]] = [
        ("ranks", f"demo, T = {lengths}", lambda c: c.ranks if c.model == "demo" else None),
        ("layers", "width 256, T = 20", lambda c: _number(c.model, "layers")),
        ("vocabulary", "8 layers, T = 20", lambda c: _number(c.model, "vocabulary")),
    ]
    figure, drawn = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    for axes, (name, title, place) in zip(drawn, panels, strict=True):
        for method in (OURS, "published", "eager"):
            points = [(at, [wall(s) for s in c.samples]) for c in cells if c.method == method and (at := place(c)) is not None]
            _line(axes, points, method)
        axes.set(xlabel=name, ylabel="seconds", title=title, yscale="log", xscale="linear" if name == "ranks" else "log")
        ticks = sorted({at for c in cells if (at := place(c)) is not None})
        axes.set_xticks(ticks, [f"{at:,}" for at in ticks])
        axes.minorticks_off()
    return _save(figure, path, drawn[0])


def _number(model: str, kind: str) -> int | None:
    found = re.fullmatch(rf"{kind}-(\d+)", model)
    return int(found.group(1)) if found else None
