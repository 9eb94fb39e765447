"""The statistics of steerability: numbers in, numbers out.

The unit of observation is a question. Its two orders of A and B are averaged beforehand: the two are not independent, and
counting them separately would make p-values too small.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats

Array = np.ndarray
_FEWEST = 5  # prompts that resampling can say something of: of one, every resample is the same
_DRAWN = 1_000_000  # prompts drawn at a time by the bootstrap


def fit_lines(alphas: Array, propensities: Array) -> tuple[Array, Array]:
    """Fit least-squares lines of propensity against α, one per prompt (Tan et al. 2024, "steerability").

    Args:
        alphas: ``[alpha]``, at least two different ones.
        propensities: ``[…, alpha]``.

    Returns:
        Slopes and R², each ``[…]``. R² is NaN for a prompt that does not move at all, as there is nothing to explain, and for
        two α, as a line goes through any two points.
    """
    centred = alphas - alphas.mean()
    # The mean of many equal numbers may be off by rounding, and a prompt that does not move would seem to.
    moves = np.ptp(propensities, axis=-1, keepdims=True) > 0
    deviations = np.where(moves, propensities - propensities.mean(-1, keepdims=True), 0.0)
    slopes = deviations @ centred / (centred @ centred)
    total = (deviations**2).sum(-1)
    residual = ((deviations - slopes[..., None] * centred) ** 2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return slopes, np.where((total > 0) & (len(alphas) > 2), 1 - residual / total, np.nan)


def paired_p(low: Array, high: Array, test: Callable[..., tuple[float, float]] | None = None) -> float:
    """Return the two-sided p-value of a paired test of two measurements of the same prompts, ``[prompt]`` each.

    Args:
        test: ``scipy.stats.ttest_rel`` (the default) or ``wilcoxon``.

    Returns:
        The p-value; 1 if nothing differs, NaN for a single prompt, which cannot be tested.
    """
    if len(low) < 2:
        return float("nan")
    if np.array_equal(low, high):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all differences alike: p is 0, and scipy warns of lost precision
        return float((test or stats.ttest_rel)(high, low)[1])


def p_among(slope: float, random: Array) -> float:
    """Return the two-sided p-value of a mean slope among those of random directions, ``[random]``: each is one observation.

    A direction and its opposite are equally likely to be drawn, so their slopes lie about 0: exactly if the α do; where these
    do not, p is too large rather than too small. A slope sums over many coordinates of its direction, so it is about normal.
    Hence t, with as many degrees of freedom as there are random directions.

    Returns:
        The p-value; NaN if no random direction moves anything.
    """
    size = float(np.sqrt((random**2).mean()))
    return float(2 * stats.t.sf(abs(slope) / size, len(random))) if size > 0 else float("nan")


def holm(p_values: Array) -> Array:
    """Correct p-values of several tests, ``[test]``, for their number (Holm 1979); NaN does not count as a test."""
    corrected = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return corrected


def bootstrap_interval(values: Array, seed: int = 0, resamples: int = 10_000, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of ``values``, ``[prompt]``, resampling prompts (Efron 1979).

    NaN twice for fewer than 5 prompts, of which it would say too much: of one, that its mean is certain.
    """
    if len(values) < _FEWEST:
        return float("nan"), float("nan")
    random = np.random.default_rng(seed)
    at_a_time = max(1, _DRAWN // len(values))
    counts = [min(at_a_time, resamples - done) for done in range(0, resamples, at_a_time)]
    means = np.concatenate([values[random.integers(len(values), size=(n, len(values)))].mean(-1) for n in counts])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def alpha_reaching(alphas: Array, changes: Array, target: float) -> float:
    """Return the α nearest to 0 at which the mean change from the unsteered propensity reaches ``target``.

    The change is interpolated linearly between measured α, and not extrapolated.

    Args:
        alphas: ``[alpha]``, ascending.
        changes: ``[alpha]``, mean propensity minus the unsteered one.

    Returns:
        α, or NaN if the target is not reached.
    """
    found = []
    for side in (1, -1):
        at, change = 0.0, 0.0
        outward = [(a, c) for a, c in zip(alphas[::side], changes[::side], strict=True) if a * side > 0]
        for next_at, next_change in outward:
            if (change - target) * (next_change - target) <= 0 and next_change != change:
                found.append(at + (target - change) / (next_change - change) * (next_at - at))
                break
            at, change = next_at, next_change
    return float(min(found, key=abs)) if found else float("nan")


def monotone(propensities: Array) -> Array:
    """Whether propensity rises at every step of α: ``[…, alpha]`` → ``[…]``."""
    return np.asarray((np.diff(propensities, axis=-1) > 0).all(-1))
