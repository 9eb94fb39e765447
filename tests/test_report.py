"""Steerability reports: statistics recomputed another way, planted cases, files and figures."""

from __future__ import annotations

import gc
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import stats

from lens_magic.errors import LensError
from lens_magic.netcdf import NETCDF_ENDINGS
from lens_magic.steer import statistics
from lens_magic.steer.report import SteerabilityReport, open_report

ALPHAS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
HOSTILE = "<script>alert(1)</script> & [[x]]"


def planted(
    slopes: np.ndarray,
    noise: float = 0.1,
    label_bias: float = 0.0,
    label_slope: float = 0.0,
    random_directions: int = 1,
    seed: int = 0,
    **options: Any,
) -> SteerabilityReport:
    """A report whose prompts move by known slopes ``[layer, prompt]``, its random directions not at all but for noise."""
    random = np.random.default_rng(seed)
    layers, prompts = slopes.shape
    alphas = np.array(ALPHAS)
    start = random.normal(-0.4, 0.5, (prompts, 1))
    letter = np.array([1.0, -1.0])  # what favours A helps the answer that is A and hurts the other
    unsteered = start + label_bias * letter
    shape = (1 + random_directions, layers, prompts, 2, len(alphas))
    values = np.broadcast_to(unsteered[:, :, None], shape) + noise * random.normal(size=shape)
    values[0] += slopes[:, :, None, None] * alphas
    values += label_slope * letter[:, None] * alphas
    fields = {
        "alphas": ALPHAS,
        "layers": tuple(range(2, 2 + layers)),
        "propensities": values,
        "unsteered": unsteered,
        "questions": tuple(f"question {prompt}" for prompt in range(prompts)),
        "labels": {"A": " (A", "B": " (B"},
        "vector": "persona",
        "site": "post_ln",
        "norms": dict.fromkeys(range(2, 2 + layers), 0.5),
        "counts": {"test": prompts, "train": 80, "excluded": 3, "rejected": 1},
        "provenance": {"model": "demo"},
    }
    return SteerabilityReport(**{**fields, **options})


def slopes_around(mean: float, prompts: int = 40, spread: float = 0.2, layers: int = 1, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, spread, (layers, prompts))


def test_planted_slopes_are_found() -> None:
    truth = slopes_around(0.7)
    report = planted(truth, noise=0.02, random_directions=10)
    assert report.slopes.shape == (40,)
    assert np.abs(report.slopes - truth[0]).max() < 0.05
    row = report.summary().loc[2]
    assert row["mean_slope"] == pytest.approx(truth.mean(), abs=0.01)
    assert row["slope_std"] == pytest.approx(truth.std(ddof=1), abs=0.01)
    assert row["slope_low"] < truth.mean() < row["slope_high"]
    assert row["r2"] > 0.98
    assert row["p_value"] < 1e-10
    assert row["p_against_random"] < 1e-10
    assert row["mean_change"] == pytest.approx(3 * truth.mean(), abs=0.03)
    assert row["alpha_for_0.3"] == pytest.approx(0.3 / truth.mean(), abs=0.03)
    assert row["multiplier_for_0.3"] == pytest.approx(row["alpha_for_0.3"] / 0.5)
    assert abs(row["random_slope"]) < 0.01
    assert row["anti_steerable"] == (truth < 0).mean()


def test_a_bias_to_a_is_not_mistaken_for_steering() -> None:
    """The direction makes the model say A, and it says A anyway: neither tells of the behaviour."""
    report = planted(np.zeros((1, 60)), noise=0.1, label_bias=2.0, label_slope=1.5)
    row = report.summary().loc[2]
    assert abs(row["mean_slope"]) < 0.05
    assert row["p_value"] > 0.01
    assert row["label_bias"] == pytest.approx(2.0, abs=0.05)
    assert row["label_slope"] == pytest.approx(1.5, abs=0.05)
    one_order = np.polyfit(ALPHAS, report.propensities[0, 0, :, 0].T, 1)[0]
    assert one_order.mean() > 1.4  # which is what asking in one order alone would have said


def test_two_orders_count_as_one_prompt() -> None:
    report = planted(slopes_around(0.05, prompts=30, spread=0.3), noise=0.0)
    balanced = report.propensities[0, 0].mean(1)
    expected = stats.ttest_rel(balanced[:, -1], balanced[:, 0]).pvalue
    assert report.summary().loc[2, "p_value"] == pytest.approx(expected)
    doubled = report.propensities[0, 0].reshape(60, 7)
    assert stats.ttest_rel(doubled[:, -1], doubled[:, 0]).pvalue < expected


def test_statistics_recomputed_otherwise() -> None:
    report = planted(slopes_around(0.2, prompts=25, layers=3, spread=0.4), noise=0.3, random_directions=2)
    summary = report.summary()
    assert list(summary.index) == [2, 3, 4]
    assert report.slopes.shape == (3, 25)
    wilcoxon: list[float] = []
    for place, layer in enumerate(report.layers):
        propensity = report.propensities[0, place].mean(1)
        lines = [stats.linregress(ALPHAS, row) for row in propensity]
        slopes = np.array([line.slope for line in lines])
        np.testing.assert_allclose(report.slopes[place], slopes, rtol=1e-10)
        row = summary.loc[layer]
        assert row["slope_std"] == pytest.approx(np.std(slopes, ddof=1))
        assert row["r2"] == pytest.approx(np.mean([line.rvalue**2 for line in lines]))
        change = propensity[:, -1] - propensity[:, 0]
        assert row["mean_change"] == pytest.approx(change.mean())
        assert row["p_uncorrected"] == pytest.approx(stats.ttest_1samp(change, 0).pvalue)
        wilcoxon.append(stats.wilcoxon(change).pvalue)
        interval = stats.bootstrap((slopes,), np.mean, method="percentile", n_resamples=10_000, rng=3).confidence_interval
        assert row["slope_low"] == pytest.approx(interval.low, abs=0.02)
        assert row["slope_high"] == pytest.approx(interval.high, abs=0.02)
        assert row["monotone"] == np.mean([all(b > a for a, b in itertools.pairwise(values)) for values in propensity])
        random = np.polyfit(ALPHAS, report.propensities[1:, place].mean(2).reshape(-1, 7).T, 1)[0].reshape(2, 25)
        assert row["random_slope"] == pytest.approx(random.mean())
        assert abs(row["random_steepest"]) == pytest.approx(np.abs(random.mean(1)).max())
    assert (summary["p_value"] >= summary["p_uncorrected"]).all()
    np.testing.assert_allclose(summary["p_wilcoxon"], statistics.holm(np.array(wilcoxon)))


def test_lines_are_fitted_to_alphas_that_do_not_lie_about_zero() -> None:
    whole = planted(slopes_around(0.2, prompts=25, spread=0.4), noise=0.3)
    some = [0, 3, 4, 6]
    report = replace(whole, alphas=tuple(np.array(ALPHAS)[some].tolist()), propensities=whole.propensities[..., some])
    assert sum(report.alphas) != 0
    lines = [stats.linregress(report.alphas, row) for row in report.propensities[0, 0].mean(1)]
    np.testing.assert_allclose(report.slopes, [line.slope for line in lines], rtol=1e-10)
    assert report.summary().loc[2, "r2"] == pytest.approx(np.mean([line.rvalue**2 for line in lines]))


@pytest.mark.parametrize("drawn", [1, 2, 3, 10])
def test_a_random_direction_is_no_more_than_a_random_one(drawn: int) -> None:
    """But as often as p says, though all prompts agree, and however many they are."""
    slopes = np.random.default_rng(drawn).normal(0, 0.02, (2000, 1 + drawn))
    found = np.array([statistics.p_among(row[0], row[1:]) for row in slopes])
    for level in (0.01, 0.05, 0.5):
        assert (found < level).mean() == pytest.approx(level, abs=3 * np.sqrt(level / 2000))
    assert np.isnan(statistics.p_among(0.1, np.zeros(drawn)))
    report = planted(np.zeros((1, 60)), noise=0.01, random_directions=drawn)
    each = np.where(np.arange(1 + drawn) % 2, 0.1, -0.15)[:, None, None, None, None]  # the vector's is the steepest
    row = replace(report, propensities=report.propensities + each * np.array(ALPHAS)).summary().loc[2]
    assert row["p_value"] < 1e-10
    assert row["p_against_random"] > 0.05


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """By its definition: a hypothesis is as likely as the likeliest intersection that it is part of."""
    values = np.array([0.01, 0.04, 0.03, 0.2])
    subsets = [s for n in range(1, 5) for s in itertools.combinations(range(4), n)]
    expected = [max(min(1, len(s) * values[list(s)].min()) for s in subsets if test in s) for test in range(4)]
    np.testing.assert_allclose(statistics.holm(values), expected)
    corrected = statistics.holm(np.array([np.nan, 0.02, 0.9]))
    assert np.isnan(corrected[0])
    np.testing.assert_allclose(corrected[1:], [0.04, 0.9])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6], 0.75),
        ([0.6, 0.4, 0.2, 0, -0.2, -0.4, -0.6], -0.75),
        ([0, 0, 0, 0, 0, 0, 0.2], np.nan),
        ([0.3, 0, 0, 0, 0.1, 0.5, 0.1], 0.75),
        ([0, 0, 0, 0, 0.3, 0.3, 0.3], 0.5),
    ],
    ids=["linear", "reversed", "never", "saturating", "exactly"],
)
def test_the_alpha_that_reaches_a_change(changes: list[float], expected: float) -> None:
    found = statistics.alpha_reaching(np.array(ALPHAS), np.array(changes, dtype=float), 0.3)
    assert found == pytest.approx(expected, nan_ok=True)


def test_the_alpha_is_found_without_zero_among_the_measured() -> None:
    assert statistics.alpha_reaching(np.array([0.5, 1.0]), np.array([0.1, 0.5]), 0.3) == pytest.approx(0.75)
    assert statistics.alpha_reaching(np.array([0.5, 1.0]), np.array([0.6, 1.0]), 0.3) == pytest.approx(0.25)


def test_what_cannot_be_said_is_not_said() -> None:
    """One prompt, and prompts that do not move."""
    alone = planted(np.array([[0.5]])).summary().loc[2]
    assert np.isnan(alone["p_value"])
    assert np.isnan(alone["slope_std"])
    for prompts in (1, 2, 4, 5):
        few = planted(slopes_around(0.5, prompts=prompts, layers=2))
        assert few.summary()["p_uncorrected"].isna().to_numpy().all() == (prompts < 2)
        assert few.summary()[["slope_low", "slope_high"]].isna().to_numpy().all() == (prompts < 5)
        assert ("– … –" in repr(few)) == (prompts < 5)
        propensity, by_layer, _ = few.plot().axes
        bars = [bar for drawn in by_layer.containers for bar in drawn[2][0].get_paths()]
        bands = [band.vertices for drawn in propensity.collections for band in drawn.get_paths() if len(band.vertices)]
        assert np.isfinite([bar.vertices for bar in bars]).all() == bool(bands) == (prompts >= 5)
    still = planted(np.zeros((1, 10)), noise=0.0).summary().loc[2]
    assert still["mean_slope"] == 0
    assert still["p_value"] == 1
    assert still["p_wilcoxon"] == 1
    assert np.isnan(still["r2"])
    assert np.isnan(still["alpha_for_0.3"])
    assert still["monotone"] == 0


def test_however_many_alphas_a_prompt_that_does_not_move_has_no_slope() -> None:
    """The mean of thirteen equal numbers is another number now and then, by rounding."""
    still = planted(np.zeros((1, 40)), noise=0.0)
    alphas = tuple(np.linspace(-1.2, 1.3, 13).round(2).tolist())
    still = replace(still, alphas=alphas, propensities=np.repeat(still.propensities[..., :1], len(alphas), -1))
    row = still.summary().loc[2]
    assert not still.slopes.any()
    assert row["anti_steerable"] == row["random_steepest"] == 0
    assert np.isnan(row["p_against_random"])


def test_two_alphas_do_not_tell_how_straight_a_line_is() -> None:
    two = planted(slopes_around(0.5))
    two = replace(two, alphas=(-1.5, 1.5), propensities=two.propensities[..., [0, -1]])
    row = two.summary().loc[2]
    assert np.isnan(row["r2"])
    assert row["mean_slope"] == pytest.approx(0.5, abs=0.1)


def test_a_report_is_a_value() -> None:
    report = planted(slopes_around(0.5))
    with pytest.raises(AttributeError):
        report.alphas = ()  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        report.propensities[0] = 0


@pytest.mark.parametrize("ending", NETCDF_ENDINGS)
def test_saving_loses_nothing(tmp_path: Path, ending: str) -> None:
    report = planted(slopes_around(0.5, layers=2), questions=tuple(f"Ω {n} \x00\n{HOSTILE}" for n in range(40)))
    again = open_report(report.save(tmp_path / f"report{ending}"))
    np.testing.assert_array_equal(again.propensities, report.propensities)
    np.testing.assert_array_equal(again.unsteered, report.unsteered)
    arrays = {"propensities": report.propensities, "unsteered": report.unsteered}
    assert vars(replace(again, **arrays)).items() >= {k: v for k, v in vars(report).items() if k not in arrays}.items()
    assert again.summary().equals(report.summary())
    assert list(tmp_path.iterdir()) == [tmp_path / f"report{ending}"]


def test_what_a_file_says_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;gone\x07"
    report = replace(planted(slopes_around(0.5)), vector=evil, labels={"A": evil, "B": evil})
    shown = repr(open_report(report.save(tmp_path / "report.nc")))
    assert "gone" in shown
    assert shown.replace("\n", "").isprintable()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, fill_disk: Callable[[], None]) -> None:
    report = planted(slopes_around(0.5))
    before = report.save(tmp_path / "report.nc").read_bytes()
    fill_disk()
    with pytest.raises(LensError, match="cannot be written: No space left"):
        report.save(tmp_path / "report.nc")
    assert (tmp_path / "report.nc").read_bytes() == before


def test_bad_paths_are_one_line(tmp_path: Path) -> None:
    report = planted(slopes_around(0.5))
    with pytest.raises(LensError, match=r"'report\.csv' should end in \.nc"):
        report.save(tmp_path / "report.csv")
    with pytest.raises(LensError, match="there is no folder"):
        report.save(tmp_path / "no" / "report.nc")
    with pytest.raises(LensError, match="there is no file"):
        open_report(tmp_path / "none.nc")
    (tmp_path / "other.nc").write_bytes(b"not this")
    with pytest.raises(LensError, match="is not a saved report"):
        open_report(tmp_path / "other.nc")
    report.to_xarray().to_netcdf(tmp_path / "plain.nc", engine="h5netcdf")
    with pytest.raises(LensError, match="is not a steerability report"):
        open_report(tmp_path / "plain.nc")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda record: record.update(norms=[1]), "has no attribute 'items'"),
        (lambda record: record.update(questions=None), "not iterable"),
        (lambda record: record.pop("labels"), "it has no 'labels'"),
        (None, "is not a saved report: .*file signature not found"),
    ],
)
def test_damaged_files_are_one_clear_line(damage: Any, words: str, tmp_path: Path, recwarn: Any, capfd: Any) -> None:
    path = planted(slopes_around(0.5)).save(tmp_path / "report.nc")
    if damage is None:
        path.write_text("a table of something else")
    else:
        with h5py.File(path, "a") as opened:
            record = json.loads(opened.attrs["report"])
            damage(record)
            opened.attrs["report"] = json.dumps(record)
    with pytest.raises(LensError, match=words) as caught:
        open_report(path)
    assert "\n" not in str(caught.value)
    gc.collect()
    assert not recwarn.list  # nor is anything said beside it
    assert capfd.readouterr().err == ""


def test_tables_and_texts() -> None:
    report = planted(slopes_around(0.5, prompts=5, layers=2), vector=HOSTILE, labels={"A": "<b>A", "B": " B"})
    table = report.to_pandas()
    assert len(table) == 2 * 2 * 5 * 2 * 7
    one = table[(table.direction == "vector") & (table.layer == 3) & (table.prompt == 4) & (table.matching == "B")]
    np.testing.assert_array_equal(one.sort_values("alpha").propensity, report.propensities[0, 1, 4, 1])
    assert set(one.question) == {"question 4"}
    html = report._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html
    assert "5 test questions, A and B in both orders; 80 training items; 3 in both and left out; 1 rejected" in html
    assert "' B'" in repr(report)


def test_small_slopes_are_shown_with_two_digits() -> None:
    """With α of a hundred, as states of a real model need, slopes are of thousandths."""
    shown = repr(planted(slopes_around(2.75e-4, spread=1e-5, layers=2), noise=1e-7))
    assert re.search(r"\+0\.0002[67] ± 0\.00001 \+0\.0002\d … \+0\.0002\d [+-]0\.00000 ", re.sub(" +", " ", shown))
    assert re.search(r" \+0\.0008[0-9] ", shown)  # the mean change, over an α of 3
    assert " +0.5" in repr(planted(slopes_around(0.5)))
    assert re.search(r"[+-]0\.\d{3} ± 0\.\d{3} ", repr(planted(slopes_around(0.5, layers=2))))
    nothing = planted(np.zeros((1, 4)), noise=0)
    assert "+0.000 ± 0.000" in repr(nothing)


def test_one_question_is_one() -> None:
    one = planted(slopes_around(0.5, prompts=1))
    assert ": 1 test question, A and B" in one.title
    assert ", 1 question in both orders" in one.plot().get_suptitle()


def test_figures_show_what_the_numbers_are() -> None:
    import matplotlib.pyplot as plt

    sweep = planted(slopes_around(0.5, layers=3))
    figure = sweep.plot(layer=3)
    propensity, by_layer, distribution = figure.axes
    means = dict(zip(*propensity.lines[-3].get_data(), strict=True))  # the last lines: vector, random, the zero line
    assert means[1.5] == pytest.approx(sweep.propensity[1, :, -1].mean())
    np.testing.assert_allclose(by_layer.lines[0].get_ydata(), sweep.summary()["mean_slope"])
    assert sum(bar.get_height() for bar in distribution.containers[0]) == pytest.approx(1)
    assert "layer 3" in propensity.get_title()
    assert len(planted(slopes_around(0.5)).plot().axes) == 2
    assert not plt.get_fignums()  # nothing left open for a notebook to draw twice
    with pytest.raises(LensError, match="layer 9 was not evaluated; evaluated: 2, 3, 4"):
        sweep.plot(layer=9)
