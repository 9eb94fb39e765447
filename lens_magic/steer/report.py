"""``SteerabilityReport``: how far a direction moves a model, prompt by prompt, compared with random directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LensError
from ..options import flag
from ..paths import path_of
from ..tables import frame_as_html
from ..words import counted
from . import report_files, statistics

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

TARGET_CHANGE = 0.3
"""The mean change of propensity for which α is sought (the paper's multiplier, arXiv 2604.06483)."""


@dataclass(frozen=True)
class SteerabilityReport:
    """Propensities of two-way questions over layers and α, and statistics of them.

    Propensity is logit(answer matching the behaviour) − logit(the other answer) at the label position. Every question was
    asked with the matching answer as A and as B. A *prompt* of the statistics is a question with its two orders averaged:
    the two are not independent observations, and the effect of steering on the letter A cancels.

    Attributes:
        alphas: ascending, in ``unit``.
        layers: the steered layers, one at a time.
        propensities: ``[direction, layer, prompt, matching, alpha]``: direction 0 is the vector's, the others are random of
            the same norm; ``matching`` is the label of the matching answer, A or B.
        unsteered: ``[prompt, matching]``.
        questions: text of each prompt.
        labels: readable text of the label tokens, by label.
        vector, site: name of the vector, and where it was added.
        norms: length of the raw difference the direction was made of, by layer, for multipliers of it.
        unit: of α: "absolute", the units of the hidden states, or "norm", those lengths.
        counts: ``test`` questions used, ``unmeasured`` ones (the user stopped it), ``train`` items the vector was made of,
            ``excluded`` questions left out because they are in both, ``rejected`` items that are not two-way questions.
        provenance: versions, model, seed, time.
    """

    alphas: tuple[float, ...]
    layers: tuple[int, ...]
    propensities: np.ndarray
    unsteered: np.ndarray
    questions: tuple[str, ...]
    labels: Mapping[str, str]
    vector: str
    site: str
    norms: Mapping[int, float] = field(default_factory=dict)
    unit: str = "absolute"
    counts: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for array in (self.propensities, self.unsteered):
            array.flags.writeable = False

    # -- per prompt ----------------------------------------------------------------------------------------------------

    @cached_property
    def _balanced(self) -> np.ndarray:
        """``[direction, layer, prompt, alpha]``."""
        return np.asarray(self.propensities.mean(3))

    @cached_property
    def _lines(self) -> tuple[np.ndarray, np.ndarray]:
        return statistics.fit_lines(np.array(self.alphas), self._balanced)

    @property
    def propensity(self) -> np.ndarray:
        """Propensity under the vector, averaged over both orders: ``[layer, prompt, alpha]``."""
        return np.asarray(self._balanced[0])

    @property
    def slopes(self) -> np.ndarray:
        """Least-squares slope of propensity against α for each prompt: ``[prompt]``, or ``[layer, prompt]`` in a sweep."""
        slopes: np.ndarray = self._lines[0][0]
        return np.asarray(slopes[0]) if len(self.layers) == 1 else slopes

    @property
    def random_slopes(self) -> np.ndarray:
        """Slopes under the random directions: ``[random, layer, prompt]``."""
        return self._lines[0][1:]

    # -- per layer -----------------------------------------------------------------------------------------------------

    def summary(self) -> pd.DataFrame:
        """Return a table with one row per layer.

        Columns:
            mean_slope, slope_std: over prompts; slope_low, slope_high: 95 % bootstrap interval of the mean, NaN for fewer than
                5 prompts.
            r2: mean R² of the prompts' lines, NaN for two α.
            p_value: paired t-test, lowest against highest α, two-sided, corrected for the number of layers (Holm);
                p_uncorrected: before correction; p_wilcoxon: of the signed-rank test instead, corrected too.
            mean_change: mean propensity at the highest α minus that at the lowest.
            alpha_for_0.3: the α nearest to 0 with a mean change of +0.3 from unsteered, interpolated between measured ones,
                absolute; NaN if none of them reaches it. multiplier_for_0.3: the same in units of the raw difference's norm.
            monotone: share of prompts whose propensity rises at every step of α.
            anti_steerable: share of prompts with a negative slope.
            random_slope: mean slope of the random directions; random_steepest: that of the steepest; p_against_random: of the
                mean slope among theirs, two-sided, corrected: t with as many degrees of freedom as random directions.
            label_bias: mean of logit(A) − logit(B) over both orders, unsteered, which does not depend on the answers'
                content; label_slope: its change per α.
        """
        table = self._table.copy()
        table["p_uncorrected"] = table["p_value"]
        for column in ("p_value", "p_wilcoxon", "p_against_random"):
            table[column] = statistics.holm(table[column].to_numpy())
        return table[_COLUMNS]

    def tests(self) -> pd.DataFrame:
        """Return the p-values of :meth:`summary` before correction, one row per layer."""
        return self._table[["p_value", "p_wilcoxon", "p_against_random"]].copy()

    @cached_property
    def _table(self) -> pd.DataFrame:
        import pandas as pd

        rows = [self._row(place) for place in range(len(self.layers))]
        return pd.DataFrame(rows, index=pd.Index(self.layers, name="layer"))

    def _row(self, place: int) -> dict[str, float]:
        from scipy.stats import wilcoxon

        alphas = np.array(self.alphas)
        propensity = self._balanced[0, place]  # [prompt, alpha]
        slopes, r2 = self._lines[0][0, place], self._lines[1][0, place]
        random = self._lines[0][1:, place]  # [random, prompt]
        low, high = statistics.bootstrap_interval(slopes)
        alpha = statistics.alpha_reaching(alphas, (propensity - self.unsteered.mean(1)[:, None]).mean(0), TARGET_CHANGE)
        as_a, as_b = self.propensities[0, place, :, 0], self.propensities[0, place, :, 1]  # [prompt, alpha]
        by_letter = (as_a - as_b) / 2
        random_means = random.mean(1)
        norm = self.norms.get(self.layers[place], np.nan)
        return {
            "mean_slope": slopes.mean(),
            "slope_std": slopes.std(ddof=1) if len(slopes) > 1 else np.nan,
            "slope_low": low,
            "slope_high": high,
            "r2": np.nanmean(r2) if not np.isnan(r2).all() else np.nan,
            "p_value": statistics.paired_p(propensity[:, 0], propensity[:, -1]),
            "p_wilcoxon": statistics.paired_p(propensity[:, 0], propensity[:, -1], wilcoxon),
            "mean_change": (propensity[:, -1] - propensity[:, 0]).mean(),
            "alpha_for_0.3": alpha * norm if self.unit == "norm" else alpha,
            "multiplier_for_0.3": alpha if self.unit == "norm" else alpha / norm,
            "monotone": statistics.monotone(propensity).mean(),
            "anti_steerable": (slopes < 0).mean(),
            "random_slope": random_means.mean(),
            "random_steepest": random_means[np.abs(random_means).argmax()],
            "p_against_random": statistics.p_among(slopes.mean(), random_means),
            "label_bias": (self.unsteered[:, 0] - self.unsteered[:, 1]).mean() / 2,
            "label_slope": statistics.fit_lines(alphas, by_letter.mean(0))[0],
        }

    # -- conversion, figures and files ---------------------------------------------------------------------------------

    def to_xarray(self) -> xr.Dataset:
        """Return a Dataset: ``propensity`` (direction, layer, prompt, matching, alpha), ``unsteered`` (prompt, matching)."""
        return report_files.to_dataset(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table, one row per measurement: direction, layer, prompt, matching, alpha, propensity, question."""
        table = self.to_xarray()["propensity"].to_dataframe().reset_index()
        table["question"] = table["prompt"].map(dict(enumerate(self.questions)))
        return table

    def plot(self, layer: int | None = None, dark: bool = False) -> Figure:
        """Plot propensity against α with a band, slopes by layer with intervals, and their distribution; all beside random.

        Args:
            layer: layer of the first and last panel; by default that of the steepest mean slope.
            dark: use colours for a dark page.

        Raises:
            LensError: the layer was not evaluated.
        """
        from ..view.steerability import plot

        return plot(self, layer, flag("dark", dark))

    def save(self, path: str | Path) -> Path:
        """Write everything as NetCDF (``.nc``), losslessly. :func:`open_report` reads it.

        Raises:
            LensError: the path does not end in ``.nc``, or its folder does not exist.
        """
        return report_files.save({"": self}, path_of(path))

    @property
    def title(self) -> str:
        """What was evaluated, and on which items, on one line."""
        counts = self.counts
        said = [f"{counted(counts.get('test', len(self.questions)), 'test question')}, A and B in both orders"]
        if counts.get("unmeasured"):
            said.append(f"stopped: {counts['unmeasured']}, the longest, were not measured")
        if "train" in counts:
            said.append(f"{counts['train']} training items")
        if "excluded" in counts:
            said.append(f"{counts['excluded']} in both and left out" if counts["excluded"] else "none in both")
        if counts.get("rejected"):
            said.append(f"{counts['rejected']} rejected")
        if self.unit == "norm":
            said.append("α in norms of what was learnt")
        labels = ", ".join(repr(text) for text in self.labels.values())
        return f"steerability of {self.vector} at {self.site}: {'; '.join(said)}; label tokens {labels}"

    def __repr__(self) -> str:
        return f"{self.title}\n{formatted(self.summary()).to_string()}"

    def _repr_html_(self) -> str:
        return frame_as_html(self.title, formatted(self.summary()))


_COLUMNS = [
    "mean_slope",
    "slope_std",
    "slope_low",
    "slope_high",
    "r2",
    "p_value",
    "p_uncorrected",
    "p_wilcoxon",
    "mean_change",
    "alpha_for_0.3",
    "multiplier_for_0.3",
    "monotone",
    "anti_steerable",
    "random_slope",
    "random_steepest",
    "p_against_random",
    "label_bias",
    "label_slope",
]


def formatted(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the main columns of a summary as short texts."""
    import pandas as pd

    def shown(column: str, form: str) -> list[str]:
        return ["–" if np.isnan(value) else f"{value:{form}}" for value in summary[column]]

    def pairs(one: str, form: str, between: str, other: str, other_form: str) -> list[str]:
        return [f"{a}{between}{b}" for a, b in zip(shown(one, form), shown(other, other_form), strict=True)]

    slope = f".{_decimals(summary['mean_slope'].to_numpy(), 3)}f"
    change = f".{_decimals(summary['mean_change'].to_numpy(), 2)}f"
    return pd.DataFrame(
        {
            "slope ± std": pairs("mean_slope", f"+{slope}", " ± ", "slope_std", slope),
            "95 %": pairs("slope_low", f"+{slope}", " … ", "slope_high", f"+{slope}"),
            "random": shown("random_slope", f"+{slope}"),
            "R²": shown("r2", ".2f"),
            "p": shown("p_value", ".2g"),
            "Δ": shown("mean_change", f"+{change}"),
            "α for +0.3": shown("alpha_for_0.3", "+.2f"),
            "in norms": shown("multiplier_for_0.3", "+.2f"),
            "monotone": shown("monotone", ".0%"),
            "anti": shown("anti_steerable", ".0%"),
        },
        index=summary.index,
    )


def _decimals(values: np.ndarray, least: int) -> int:
    """Return how many decimals show two digits of the largest of these: α of a hundred go with slopes of a thousandth."""
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
    return min(max(least, 1 - math.floor(math.log10(largest))), 9) if largest > 0 else least


def open_report(path: str | Path) -> SteerabilityReport:
    """Read a report that :meth:`SteerabilityReport.save` wrote.

    Raises:
        LensError: there is no such file, or it holds something else.
    """
    reports, _ = report_files.read(path_of(path))
    if "" not in reports:
        raise LensError(f"{path} holds the reports of a site ablation; lens.open_ablation reads it")
    return SteerabilityReport(**reports[""])
