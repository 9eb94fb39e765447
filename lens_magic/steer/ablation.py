"""``SiteAblation``: where a direction is best read and added, site by site (the paper's Table 4 and Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LensError
from ..options import flag
from ..paths import path_of
from ..tables import frame_as_html
from ..words import counted
from . import report_files, statistics
from .report import SteerabilityReport, formatted

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from .vector import SteeringVector

Choice = tuple[str, str]
"""(site, training position)"""

_BETWEEN = " at "


@dataclass(frozen=True)
class SiteAblation:
    """Steerability reports of directions from one set of pairs, at several sites and training positions.

    Attributes:
        reports: by (site, position).
        without: by (site, position), layers without a direction: both sides of the pairs are the same, or cancel.
        vectors: by (site, position), what was learnt there; a file does not have them.
    """

    reports: Mapping[Choice, SteerabilityReport]
    without: Mapping[Choice, tuple[int, ...]] = field(default_factory=dict)
    vectors: Mapping[Choice, SteeringVector] = field(default_factory=dict, compare=False, repr=False)

    def summary(self) -> pd.DataFrame:
        """Return a table, one row per (site, position, layer), with the columns of :meth:`SteerabilityReport.summary`.

        p-values are corrected for the number of rows, all of which are tests of the same data.
        """
        import pandas as pd

        parts = {choice: report.summary() for choice, report in self.reports.items()}
        table = pd.concat(parts, names=["site", "position"])
        table["p_value"] = statistics.holm(table["p_uncorrected"].to_numpy())
        for column in ("p_wilcoxon", "p_against_random"):
            uncorrected = pd.concat({choice: report.tests()[column] for choice, report in self.reports.items()})
            table[column] = statistics.holm(uncorrected.to_numpy())
        return table

    def plot(self, dark: bool = False) -> Figure:
        """Plot mean slopes by layer with 95 % intervals: a line per site, a panel per position; ``dark`` for a dark page."""
        from ..view.steerability import plot_sites

        return plot_sites(self, flag("dark", dark))

    def save(self, path: str | Path) -> Path:
        """Write everything as NetCDF (``.nc``), losslessly, one group per site and position. :func:`open_ablation` reads it.

        Raises:
            LensError: the path does not end in ``.nc``, or its folder does not exist.
        """
        named = {_BETWEEN.join(choice): report for choice, report in self.reports.items()}
        return report_files.save(
            named, path_of(path), without=[[*choice, list(layers)] for choice, layers in self.without.items()]
        )

    @property
    def title(self) -> str:
        """What was compared, on one line."""
        report = next(iter(self.reports.values()))
        without = [
            f"{site} at {position} of layer {','.join(map(str, layers))}" for (site, position), layers in self.without.items()
        ]
        none = f"; no direction: {'; '.join(without)}" if without else ""
        questions = f"{counted(len(report.questions), 'test question')} in both orders"
        return f"{len(self.reports)} sites and positions, {questions}{none}"

    def __repr__(self) -> str:
        return f"{self.title}\n{formatted(self.summary()).to_string()}"

    def _repr_html_(self) -> str:
        return frame_as_html(self.title, formatted(self.summary()))


def open_ablation(path: str | Path) -> SiteAblation:
    """Read what :meth:`SiteAblation.save` wrote.

    Raises:
        LensError: there is no such file, or it holds something else.
    """
    groups, also = report_files.read(path_of(path))
    if "without" not in also:
        raise LensError(f"{path} holds a single report; lens.open_report reads it")
    reports = {_choice(name): SteerabilityReport(**fields) for name, fields in groups.items()}
    return SiteAblation(reports, {(site, position): tuple(layers) for site, position, layers in also["without"]})


def _choice(group: str) -> Choice:
    site, position = group.split(_BETWEEN)
    return site, position
