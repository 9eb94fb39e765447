"""Figures of a run: what they show, and that no token can break them."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import once
import pytest
from fake_run import fake_run
from matplotlib.backends.backend_agg import FigureCanvasAgg

import lens_magic as lens
from lens_magic.errors import LensError
from lens_magic.view import bundle
from lens_magic.view.figure import label
from lens_magic.view.plots import plot

KINDS = ("heatmap", "token", "trajectories", "entropy")
HOSTILE = ["<script>alert(1)</script>", "$x_{1}$", "\\frac{", "\n\t", "\u202eabc", "a\u0301", "語", "🙂", "\U00012000"]
HOSTILE += ["", "\x00", "&amp;"]


@pytest.fixture(scope="module")
def run(checkpoints: Callable[[str], Path]) -> Any:
    once.load(checkpoints("llama-gqa"))
    return lens.run(models.PROMPT, 12, ignore_eos=True, track=[3, 5])


def svg_of(figure: Any) -> str:
    written = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is a warning of matplotlib's
        figure.savefig(written, format="svg")
    return written.getvalue()


def words(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_drawn_with_text_that_stays_text(run: Any, kind: str, dark: bool) -> None:
    figure = run.plot(kind, dark=dark)
    found = words(svg_of(figure))
    assert "layer" in found
    assert figure.get_facecolor()[:3] == pytest.approx((0.067, 0.078, 0.09) if dark else (1, 1, 1), abs=0.01)


def test_no_token_disturbs_a_figure(run: Any) -> None:
    ids = sorted(run.token_texts)
    texts = {index: HOSTILE[number % len(HOSTILE)] for number, index in enumerate(ids)}
    hostile = dataclasses.replace(run, token_texts=texts)
    for kind in KINDS:
        svg = svg_of(hostile.plot(kind))
        assert "<script" not in svg
        ET.fromstring(svg)
    shown = " ".join(words(svg_of(hostile.plot("heatmap"))))
    assert "$x_{1}$" in shown  # as it is written, not as mathematics
    assert "\\u{12000}" in shown  # no font here has cuneiform


def test_a_heatmap_is_of_the_runs_numbers(run: Any) -> None:
    for shade, expected in {
        "prob": run.variables["prob"][2, :, :, 0],
        "entropy": run.variables["entropy"][2],
        "target_rank": np.log10(1 + run.variables["target_rank"][2]),
    }.items():
        (image,) = run.plot("heatmap", shade=shade).axes[0].images
        np.testing.assert_allclose(image.get_array(), expected.T, rtol=1e-6)


@pytest.mark.parametrize("dark", [False, True])
def test_what_is_unsure_is_violet_as_in_the_explorer(run: Any, dark: bool) -> None:
    css = (bundle.FOLDER / "theme.css").read_text(encoding="utf-8")
    most = [tuple(int(part) for part in told.split()) for told in re.findall(r"--lens-unsure: ([\d ]+);", css)][dark]
    for shade in ("entropy", "kl_final"):
        figure = run.plot("heatmap", shade=shade, dark=dark)
        (image,) = figure.axes[0].images
        assert tuple(image.cmap(1.0, bytes=True)[:3]) == most
        assert image.cmap(0.0)[:3] == pytest.approx(figure.get_facecolor()[:3], abs=1e-6)


@pytest.mark.parametrize("dark", [False, True])
def test_a_rank_of_0_is_shaded_most_and_the_scale_tells_ranks(run: Any, dark: bool) -> None:
    """As in the explorer, where what is sure is what stands out."""
    figure = run.plot("heatmap", shade="target_rank", dark=dark)
    cells, scale = figure.axes
    (image,) = cells.images
    likely = run.plot("heatmap", dark=dark).axes[0].images[0]
    assert image.cmap(image.norm(0)) == likely.cmap(likely.norm(1))
    worst = int(run.variables["target_rank"][2].max())
    shown = [label.get_text() for label in scale.get_yticklabels()]
    assert shown == ["0", *(f"{10**power:,}" for power in range(len(shown) - 1))]
    assert 10 ** (len(shown) - 2) <= worst + 1 < 10 ** (len(shown) - 1)


def test_a_tokens_sites_stand_in_rows_that_a_page_has_room_for(run: Any) -> None:
    many = fake_run(5, 8, sites=("resid_pre", "attn_out", "post_ln", "mlp_out", "resid_post"))
    *panels, _ = plot(many, "token").axes
    assert [axes.get_title() for axes in panels] == ["block input", "attention", "MLP input", "MLP", "residual stream"]
    assert [sum(bool(tick.get_text()) for tick in axes.get_yticklabels()) for axes in panels] == [8, 0, 0, 8, 0]
    few = run.plot("token")
    assert len(few.axes) == 4
    assert plot(many, "token").get_figwidth() == few.get_figwidth()


def test_ranks_that_are_all_0_have_a_scale_of_ranks(run: Any) -> None:
    none = np.zeros_like(run.variables["tracked_rank"])
    _, right = dataclasses.replace(run, variables={**run.variables, "tracked_rank": none}).plot("trajectories", position=4).axes
    low, high = right.get_ylim()
    assert -1 < high < 0
    assert low >= 10
    assert [tick for tick in right.get_yticks() if high <= tick <= low] == [0, 1, 10]


@pytest.mark.parametrize("dark", [False, True])
def test_tokens_can_be_read_on_every_shade(run: Any, dark: bool) -> None:
    """WCAG 2's contrast of small text, on all that a scale has."""
    shades = np.linspace(0, 1, run.variables["prob"][..., 0].size, dtype=np.float32).reshape(run.variables["prob"].shape[:3])
    graded = dataclasses.replace(run, variables={**run.variables, "prob": shades[..., None]})

    def luminance(colour: Any) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    axes = graded.plot("heatmap", dark=dark).axes[0]
    (image,) = axes.images
    for text in axes.texts:
        column, row = text.get_position()
        behind = luminance(image.cmap(image.norm(image.get_array()[row, column])))
        ink = luminance((0, 0, 0) if text.get_color() == "#000000" else (1, 1, 1))
        assert (max(ink, behind) + 0.05) / (min(ink, behind) + 0.05) >= 4.5


@pytest.mark.parametrize(("layers", "every"), [(9, 1), (30, 2), (80, 2)])
def test_layers_are_named_as_far_as_there_is_room(layers: int, every: int) -> None:
    """Without tokens in its cells a heatmap's columns are narrower than a number of two digits."""
    figure = plot(fake_run(40, layers), "heatmap", annotate=False)
    figure.canvas.draw()
    names = [text for text in figure.axes[0].get_xticklabels() if text.get_text()]
    assert [text.get_text() for text in names] == [str(layer) for layer in range(0, layers, every)]
    boxes = [text.get_window_extent() for text in names]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_trajectories_follow_what_the_run_followed(run: Any) -> None:
    left, right = run.plot("trajectories", position=4, site="mlp_out").axes
    for place, (prob, rank) in enumerate(zip(left.lines, right.lines, strict=True)):
        np.testing.assert_allclose(prob.get_ydata(), run.variables["tracked_prob"][1][:, 4, place])
        np.testing.assert_allclose(rank.get_ydata(), run.variables["tracked_rank"][1][:, 4, place])
    assert len(left.lines) == 2
    assert not any("math" in word for word in words(svg_of(left.figure)))


def test_every_token_that_is_named_has_a_line_of_its_own(run: Any) -> None:
    *named, one_more = sorted(run.token_texts)[:25]
    figure = run.plot("trajectories", position=4, tokens=named)
    for axes in figure.axes:
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 24
    (legend,) = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == [label(run.token_texts[i]).strip() for i in named]
    with pytest.raises(LensError, match="25 lines could not be told apart; name at most 24 tokens=…"):
        run.plot("trajectories", position=4, tokens=[*named, one_more])


def test_the_legend_covers_no_line(run: Any) -> None:
    figure = run.plot("trajectories", position=4)
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert all(axes.get_window_extent().x1 <= legend.x0 for axes in figure.axes)


def test_tokens_left_out_of_the_default_are_counted(run: Any) -> None:
    one = fake_run(3, 24, vocabulary=300)
    leaders = len(set(one.variables["token_id"][2, :, 2, 0].tolist()))
    assert leaders > 6  # or none is left out
    left, _ = plot(one, "trajectories").axes
    assert len(left.lines) == 6
    assert left.figure.legends[0].get_title().get_text() == f"6 of {leaders}"
    tracked, _ = run.plot("trajectories", position=4).axes
    assert not tracked.figure.legends[0].get_title().get_text()


def test_tokens_that_begin_with_an_underscore_are_in_the_legend(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "text.usetex", True)  # a user's setting; a token is no LaTeX
    texts = dataclasses.replace(run, token_texts=dict.fromkeys(run.token_texts, "_name\\input{x}"))
    left, _ = texts.plot("trajectories", position=4, site="mlp_out").axes
    shown = [text.get_text() for text in left.figure.legends[0].get_texts()]
    assert len(shown) == len(left.lines)
    assert all(text.startswith(" _name") for text in shown)
    assert "\\input{x}" in " ".join(words(svg_of(left.figure)))


def test_trajectories_of_each_positions_own_tokens(run: Any) -> None:
    own = lens.run(models.PROMPT, 6, ignore_eos=True, track=True)
    for position in (0, 4):
        left, right = own.plot("trajectories", position=position, site="attn_out").axes
        places = np.flatnonzero(own.variables["tracked_id"][position] >= 0)[: len(left.lines)]
        assert len(left.lines) == min(6, (own.variables["tracked_id"][position] >= 0).sum())
        for place, prob, rank in zip(places, left.lines, right.lines, strict=True):
            np.testing.assert_allclose(prob.get_ydata(), own.variables["tracked_prob"][0][:, position, place])
            np.testing.assert_allclose(rank.get_ydata(), own.variables["tracked_rank"][0][:, position, place])
    assert own.view().header["followed"] == own.variables["tracked_id"].shape[1]


@pytest.fixture(scope="module")
def lacking(run: Any) -> Any:
    """The run, without numbers in layer 1 at position 4."""
    values = {name: array.copy() for name, array in run.variables.items()}
    for name, array in values.items():
        if name.endswith("_rank"):
            array[:, 1, 4] = -1
        elif array.dtype.kind == "f":
            array[:, 1, 4] = np.nan
    return dataclasses.replace(run, variables=values)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("shade", ["prob", "entropy", "target_rank", "kl_final", "target_prob"])
def test_a_cell_without_numbers_has_no_shade(lacking: Any, shade: str, dark: bool) -> None:
    axes = lacking.plot("heatmap", shade=shade, dark=dark).axes[0]
    (image,) = axes.images
    assert np.argwhere(np.ma.getmaskarray(image.get_array())).tolist() == [[4, 1]]
    (text,) = [text for text in axes.texts if text.get_position() == (1, 4)]
    assert text.get_color() == ("#ffffff" if dark else "#000000")  # on paper


def test_no_rank_anywhere_is_no_shade_anywhere(run: Any) -> None:
    """As of a run through a basis, whose next tokens are no directions."""
    none = {**run.variables, "target_rank": np.full_like(run.variables["target_rank"], -1)}
    (image,) = dataclasses.replace(run, variables=none).plot("heatmap", shade="target_rank").axes[0].images
    assert np.ma.getmaskarray(image.get_array()).all()


@pytest.mark.parametrize("tokens", ["tracked", "next", "candidate"])
def test_lines_break_at_a_cell_without_numbers(lacking: Any, tokens: str) -> None:
    ids = [*lacking.prompt_ids, *lacking.output_ids]
    candidate = int(lacking.variables["token_id"][1, 1, 4, 0])
    chosen = {"tracked": None, "next": [ids[len(lacking.prompt_ids) + 4]], "candidate": [candidate]}[tokens]
    for axes in lacking.plot("trajectories", position=4, site="mlp_out", tokens=chosen).axes:
        assert all(np.isnan(line.get_ydata()[1]) for line in axes.lines)
    assert len(axes.lines)


def test_entropy_by_layer_is_of_the_cells_with_numbers(lacking: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (axes,) = lacking.plot("entropy").axes
    for line, entropy in zip(axes.lines, lacking.variables["entropy"], strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.nanmean(entropy, 1), rtol=1e-5)
    none = {**lacking.variables, "entropy": np.full_like(lacking.variables["entropy"], np.nan)}
    assert np.isnan(dataclasses.replace(lacking, variables=none).plot("entropy").axes[0].lines[0].get_ydata()).all()


def test_what_a_figure_cannot_show(run: Any) -> None:
    for kind, options, words_of in [
        ("pie", {}, "there is no figure 'pie'; heatmap, token, trajectories, entropy are there"),
        ("heatmap", {"shade": "love"}, "shade 'love' is not one of"),
        ("heatmap", {"site": "resid_pre"}, "was not captured in this run"),
        ("token", {"position": 99}, "position 99 is not in this run; 0 to 11 are"),
        ("heatmap", {"positions": []}, "0 cells are not what a figure can show"),
        ("heatmap", {"positions": "a"}, "positions 'a' are not integers"),
        ("heatmap", {"shade": []}, r"shade \[\] is not one of"),
        ("heatmap", {"site": ""}, "site '' was not captured"),
        ("heatmap", {"dark": "no"}, "dark 'no' is neither True nor False"),
        (["heatmap"], {}, r"there is no figure \['heatmap'\]"),
        ("token", {"position": "a"}, "position 'a' is not an integer"),
        ("token", {"site": "mlp_out"}, "the figure 'token' has no option site; it has position$"),
        ("entropy", {"site": "mlp_out"}, "the figure 'entropy' has no option site; it has none$"),
        ("trajectories", {"tokens": []}, "no tokens were named; texts or ids would do"),
        ("trajectories", {"tokens": [5.5]}, "tokens= takes texts or ids of tokens, not float"),
        ("trajectories", {"tokens": [-1]}, r"token -1 does not occur in this run; lens.run\(…, track=…\) follows any"),
        ("trajectories", {"tokens": 10**9}, "token 1000000000 does not occur in this run"),
        ("trajectories", {"tokens": "no such"}, r"no token of this run reads 'no such'; lens.run\(…, track=…\) follows any"),
    ]:
        with pytest.raises(LensError, match=words_of):
            run.plot(kind, **options)


def test_one_position_is_named_by_its_number(run: Any) -> None:
    assert run.plot("heatmap", positions=3).axes[0].images[0].get_array().shape == (1, len(run.layers))


def test_tokens_are_named_by_text_or_id_as_those_to_track(run: Any) -> None:
    texts = {3: " Paris", 5: ",", 7: " the", 8: " the"}
    named = dataclasses.replace(run, token_texts=texts)
    for tokens in ([" Paris", 5], " Paris,id:5", np.array([3, 5]), [3, "id:5", 3]):
        left, _ = named.plot("trajectories", position=4, tokens=tokens).axes
        assert [line.get_label() for line in left.lines] == ["·Paris", ","]
        np.testing.assert_allclose(left.lines[0].get_ydata(), run.variables["tracked_prob"][2][:, 4, 0])
    for text, told in [("Paris", "with a space before it, ' Paris', one does"), (" the", "ids would do: 7, 8")]:
        with pytest.raises(LensError, match=told):
            named.plot("trajectories", tokens=text)


def test_labels_are_short_and_visible() -> None:
    assert label(" the") == "·the"
    assert label("a" * 40) == "a" * 13 + "…"
    assert label("\n") == "⏎"


@pytest.mark.parametrize("model", ["demo", "/data/models/" + 9 * "a-long-name-"])
@pytest.mark.parametrize(("positions", "layers"), [(1, 6), (1, 1), (10, 4)])
def test_no_text_runs_off_a_figure(positions: int, layers: int, model: str) -> None:
    run = fake_run(positions, layers)
    run.model = model
    for figure in (plot(run), plot(run, shade="target_rank"), plot(run, "token"), plot(run, "entropy")):
        FigureCanvasAgg(figure).draw()  # lays it out
        named = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
        for text in [*named, *figure.texts]:
            box = text.get_window_extent()
            outside = (box.x0 < 0, box.y0 < 0, box.x1 > figure.bbox.x1, box.y1 > figure.bbox.y1)
            assert not text.get_text() or not any(outside), text


def test_a_title_names_a_folder_by_its_last_part() -> None:
    run = fake_run(2, 6)
    for model, named in [
        ("demo", "demo"),
        ("owner/model", "owner/model"),
        ("/data/models/mine", "mine"),
        ("./mine/", "mine"),
        ("~/models/mine", "mine"),
        ("..", ".."),
    ]:
        run.model = model
        assert plot(run).axes[0].get_title() == f"{named}, residual stream"
    assert plot(fake_run(1, 2), "entropy").axes[0].get_title() == "fake-model, 1 position"


def test_the_view_writes_images(run: Any, tmp_path: Path) -> None:
    view = run.view()
    assert view.to_png(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    view.selected = {"site": "mlp_out", "layer": 1, "position": 2}
    assert "MLP" in " ".join(words(view.to_svg(tmp_path / "a.svg").read_text(encoding="utf-8")))


def test_a_picture_has_as_many_pixels_as_can_be_drawn(run: Any, tmp_path: Path) -> None:
    view = run.view()
    for options, told in [
        ({"dpi": 0}, "dpi 0 is out of range for a figure of .* inches; 1 to [0-9]+ would do"),
        ({"dpi": 10**9}, "dpi 1e[+]09 is out of range"),
        ({"dpi": "a"}, "dpi 'a' is not a number"),
        ({"kind": "token"}, "the figure 'heatmap' has no option kind; it has site, shade, positions, annotate"),
    ]:
        with pytest.raises(LensError, match=told):
            view.to_png(tmp_path / "a.png", **options)
    assert not list(tmp_path.iterdir())
