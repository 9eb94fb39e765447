"""Figures of steerability reports."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LensError
from ..steer import statistics
from ..words import counted
from .figure import Palette, label, panels, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..steer.ablation import SiteAblation
    from ..steer.report import SteerabilityReport

_WIDTH, _HEIGHT = 4.0, 3.4  # of a panel, inches


def plot(report: SteerabilityReport, layer: int | None = None, dark: bool = False) -> Figure:
    """See :meth:`lens_magic.steer.report.SteerabilityReport.plot`."""
    place = _place(report, layer)
    sweep = len(report.layers) > 1
    with styled(dark) as palette:
        figure, axes = panels([_WIDTH] * (3 if sweep else 2), _HEIGHT)
        _propensity(axes[0], palette, report, place)
        if sweep:
            _by_layer(axes[1], palette, report)
        _distribution(axes[-1], palette, report, place)
        name = label(report.vector, 40)
        questions = counted(len(report.questions), "question")
        figure.suptitle(f"{name} at {report.site}, {questions} in both orders")
    return figure


def _place(report: SteerabilityReport, layer: int | None) -> int:
    if layer is None:
        return int(np.abs(np.atleast_2d(report.slopes).mean(1)).argmax())
    if layer not in report.layers:
        raise LensError(f"layer {layer} was not evaluated; evaluated: {', '.join(map(str, report.layers))}")
    return report.layers.index(layer)


def _per(report: SteerabilityReport) -> str:
    return f"nats per {'norm' if report.unit == 'norm' else 'α'}"


def _directions(palette: Palette, values: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Name, colour and values of the vector's direction, and of the mean over random ones; ``values`` is ``[direction, …]``."""
    return [("vector", palette.lines[0], values[0]), ("random", palette.faint, values[1:].mean(0))]


def _propensity(axes: Any, palette: Palette, report: SteerabilityReport, place: int) -> None:
    alphas = np.array(report.alphas)
    balanced = report.propensities[:, place].mean(2)  # [direction, prompt, alpha]
    axes.plot(alphas, balanced[0].T, color=palette.lines[0], alpha=0.12, linewidth=0.6)
    for name, colour, values in _directions(palette, balanced):
        mean = values.mean(0)
        bounds = np.array([statistics.bootstrap_interval(at, resamples=2000) for at in values.T])
        axes.fill_between(alphas, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.25, linewidth=0)
        axes.plot(alphas, mean, color=colour, marker="o", markersize=3, label=name)
    axes.axhline(0, color=palette.ink, linewidth=0.5)
    axes.set(
        xlabel="α in norms" if report.unit == "norm" else "α",
        ylabel="propensity (nats)",
        title=f"layer {report.layers[place]}, mean and 95 %",
    )
    axes.legend(frameon=False)


def _by_layer(axes: Any, palette: Palette, report: SteerabilityReport) -> None:
    slopes = np.concatenate([np.atleast_2d(report.slopes)[None], report.random_slopes])  # [direction, layer, prompt]
    for name, colour, values in _directions(palette, slopes):
        mean = values.mean(1)
        bounds = np.array([statistics.bootstrap_interval(at) for at in values])
        distances = np.abs(bounds.T - mean)
        axes.errorbar(report.layers, mean, distances, color=colour, marker="o", markersize=3, capsize=2, label=name)
    axes.axhline(0, color=palette.ink, linewidth=0.5)
    axes.set(xlabel="layer", ylabel=f"mean slope ({_per(report)})", title="slope by layer, 95 %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)


def plot_sites(ablation: SiteAblation, dark: bool = False) -> Figure:
    """See :meth:`lens_magic.steer.ablation.SiteAblation.plot`."""
    positions = list(dict.fromkeys(position for _, position in ablation.reports))
    summary, per = ablation.summary().reset_index(), _per(next(iter(ablation.reports.values())))
    with styled(dark) as palette:
        figure, axes = panels([_WIDTH] * len(positions), _HEIGHT)
        for panel, position in zip(axes, positions, strict=True):
            sites = [site for site, at in ablation.reports if at == position]
            for site, mark, colour in zip(sites, itertools.cycle("os^vD"), itertools.cycle(palette.lines), strict=False):
                rows = summary[(summary["site"] == site) & (summary["position"] == position)]
                mean = rows["mean_slope"].to_numpy()
                distances = np.abs(rows[["slope_low", "slope_high"]].to_numpy().T - mean)
                drawn = {"color": colour, "marker": mark, "markersize": 3, "capsize": 2}
                panel.errorbar(rows["layer"], mean, distances, label=site, **drawn)
            panel.axhline(0, color=palette.ink, linewidth=0.5)
            panel.set(xlabel="layer", ylabel=f"mean slope ({per})", title=f"read at position {position!r}, 95 %")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.legend(frameon=False)
    return figure


def _distribution(axes: Any, palette: Palette, report: SteerabilityReport, place: int) -> None:
    slopes = np.concatenate([np.atleast_2d(report.slopes)[None], report.random_slopes])[:, place]  # [direction, prompt]
    bins = np.histogram_bin_edges(slopes, bins=min(30, max(8, slopes.shape[1] // 3)))
    for name, colour, values in (("vector", palette.lines[0], slopes[0]), ("random", palette.faint, slopes[1:].reshape(-1))):
        shares = np.full(len(values), 1 / len(values))
        axes.hist(values, bins=bins, weights=shares, color=colour, alpha=0.55, label=name)
    axes.axvline(0, color=palette.ink, linewidth=0.5)
    axes.set(xlabel=f"slope ({_per(report)})", ylabel="share of prompts", title=f"slopes at layer {report.layers[place]}")
    axes.legend(frameon=False)
