"""The packed run, and the views made of it without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import HOSTILE, FakeRun, fake_run, follow, spread, track, without_numbers

from lens_magic.errors import LensError
from lens_magic.lens.made import how_made
from lens_magic.lens.run import LensRun
from lens_magic.view import Explorer, LiveView, bundle, page_html, show, table_html
from lens_magic.view.codes import PROB_STEP
from lens_magic.view.data import pack, unpack
from lens_magic.view.plots import plot
from lens_magic.view.terminal import table_text
from lens_magic.view.text import visible


class Parsed(HTMLParser):
    """Elements and attributes of a document, and the text of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def _missing(name: str, values: np.ndarray) -> np.ndarray:
    return values < 0 if name.endswith("rank") else np.isnan(values)


class TestPack:
    @pytest.mark.parametrize("hostile", [False, True])
    def test_comes_back_within_the_steps_of_its_coding(self, hostile: bool) -> None:
        run = fake_run(20, 5, k=4, prompt_positions=3, hostile=hostile)
        data, back = run.to_xarray(), unpack(pack(run))
        assert np.array_equal(back["token_id"], data.token_id)
        assert np.array_equal(back["target_rank"], data.target_rank)
        for name in ("prob", "target_prob"):
            there = data[name].values > np.exp(-31)
            np.testing.assert_allclose(back[name][there], data[name].values[there], rtol=PROB_STEP / 2 * 1.01)
        np.testing.assert_allclose(back["prob_topk"], data.prob_topk, rtol=2 * PROB_STEP)
        np.testing.assert_allclose(back["logit"], data.logit, atol=0.001)
        np.testing.assert_allclose(back["entropy"], data.entropy, atol=1 / 4096)

    def test_a_large_run_stays_below_ten_megabytes(self) -> None:
        run = fake_run(1500, 80, vocabulary=20_000)
        packed = pack(run)
        header = json.dumps(packed.header, ensure_ascii=False).encode()
        assert packed.nbytes + len(header) < 10_000_000
        data, back = run.to_xarray(), unpack(packed)
        assert np.array_equal(back["token_id"], data.token_id)
        np.testing.assert_allclose(back["prob"], data.prob, rtol=PROB_STEP / 2 * 1.01)
        np.testing.assert_allclose(back["entropy"], data.entropy, atol=1 / 16)
        rank = data.target_rank.values
        assert np.array_equal(back["target_rank"][rank < 64], rank[rank < 64])
        np.testing.assert_allclose(back["target_rank"], rank, rtol=0.03)

    def test_more_tokens_than_two_bytes_number_take_up_to_sixteen_megabytes(self) -> None:
        run = fake_run(1500, 80, vocabulary=3000)
        candidates = run.dataset["token_id"].values
        candidates.ravel()[:128_256] = np.arange(128_256)
        run.token_texts.update({index: f" tok{index}" for index in range(len(run.token_texts), 128_256)})
        packed = pack(run)
        assert packed.buffers["token"].dtype == np.uint32
        assert packed.nbytes + len(json.dumps(packed.header, ensure_ascii=False).encode()) < 16_000_000
        assert np.array_equal(unpack(packed)["token_id"], candidates)

    def test_kl_and_tracked_tokens_come_back(self) -> None:
        run = track(fake_run(9, 5), [2, 11, 30])
        run.dataset["kl_final"][0, 0, 0] = np.nan
        data, packed = run.to_xarray(), pack(run)
        back = unpack(packed)
        np.testing.assert_allclose(back["kl_final"], data.kl_final, atol=2e-4)
        np.testing.assert_allclose(back["tracked_prob"], data.tracked_prob, rtol=PROB_STEP)
        assert np.array_equal(back["tracked_rank"], data.tracked_rank)
        assert packed.buffers["ids"][packed.header["tracked"]].tolist() == [2, 11, 30]

    def test_each_positions_own_tokens_come_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = follow(fake_run(9, 5), most=6)
        data, packed = run.to_xarray(), pack(run)
        back = unpack(packed)
        there = data.tracked_rank.values >= 0
        assert not there.all()  # or nothing is missing anywhere, and that was not tried
        np.testing.assert_allclose(back["tracked_prob"][there], data.tracked_prob.values[there], rtol=PROB_STEP)
        assert np.array_equal(back["tracked_rank"], data.tracked_rank)
        ids = np.append(packed.buffers["ids"].astype(np.int64), -1)
        assert np.array_equal(ids[packed.buffers["tracked"]], data.tracked_id)
        assert packed.header["tracked"] == []
        assert packed.header["followed"] == 6
        monkeypatch.setattr("lens_magic.view.data.LARGE_BYTES", 0)
        assert {"tracked", "tracked_prob", "tracked_rank"}.isdisjoint(pack(run).buffers)

    @pytest.mark.parametrize("large", [False, True])
    def test_cells_without_numbers_come_back_without(self, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lens_magic.view.data.LARGE_BYTES", 0 if large else 8_000_000)
        run = without_numbers(track(fake_run(9, 5), [2, 11]), layer=3, position=4)
        data, back = run.to_xarray(), unpack(pack(run))
        for name in set(back) - {"token_id"}:
            assert np.array_equal(_missing(name, back[name]), _missing(name, data[name].values)), name

    def test_where_runs_part_is_told_from_the_numbers_themselves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lens_magic.view.data.LARGE_BYTES", 0)
        run = fake_run(3, 4)
        apart = np.full(run.dataset.entropy.shape, 0.0)
        stream = [[0.09, 0.0999, 0.1001, 30], [0.1001, 0, 0, 0], [0.05, np.nan, 0.0999, 0.09]]  # [position, layer]
        apart[2] = np.array(stream).T
        packed = pack(run, apart=apart)
        _, below, above, _ = unpack(packed)["kl_apart"][2, :, 0]
        assert below == above  # in one byte
        assert packed.header["parts"] == [2, 0, -1]
        assert pack(run).header["parts"] == []
        assert pack(fake_run(3, 4, sites=["mlp_out"]), apart=apart[:1]).header["parts"] == []

    def test_what_is_beyond_a_coding_is_not_missing(self) -> None:
        run = fake_run(2, 2)
        run.dataset["entropy"][...] = 99.0
        run.dataset["target_prob"][...] = 0.0
        back = unpack(pack(run))
        assert (back["entropy"] > 15.9).all()
        assert (back["target_prob"] < 1e-13).all()

    def test_positions_read_one_token_and_predict_the_next(self) -> None:
        run = fake_run(3, 1, prompt_positions=2)
        header = pack(run).header
        sequence = run.prompt_ids + run.output_ids
        raw = [header["raw"].get(str(i), t.replace("·", " ")) for i, t in enumerate(header["tokens"])]
        assert header["positions"] == [-2, -1, 0, 1, 2]
        assert [raw[i] for i in header["inputs"]] == [run.token_texts[i] for i in sequence[:-1]]
        assert [raw[i] for i in header["targets"]] == [run.token_texts[i] for i in sequence[1:]]

    def test_a_position_without_a_target_is_marked_as_such(self) -> None:
        run = fake_run(3, 2)
        run.output_ids = run.output_ids[:2]
        run.dataset["target_rank"][..., 2] = -1
        packed = pack(run)
        assert packed.header["targets"][2] == -1
        assert (unpack(packed)["target_rank"][..., 2] == -1).all()

    def test_more_than_65536_distinct_tokens(self) -> None:
        run = fake_run(1, 1, k=2)
        ids = np.arange(70_000, dtype=np.int32).reshape(1, 1, 35_000, 2)
        wide = fake_run(35_000, 1, ["resid_post"], k=2)
        wide.dataset["token_id"] = (("site", "layer", "position", "k"), ids)
        wide.token_texts.update(run.token_texts)
        packed = pack(wide)
        assert packed.buffers["token"].dtype == np.uint32
        assert np.array_equal(unpack(packed)["token_id"], ids)

    def test_the_header_is_json_and_tells_every_buffer_s_type(self) -> None:
        packed = pack(fake_run(4, 2, hostile=True))
        header = json.loads(json.dumps(packed.header, ensure_ascii=False).encode())
        assert {n: e["dtype"] for n, e in header["encoding"].items()} == {n: b.dtype.name for n, b in packed.buffers.items()}

    def test_logits_of_what_is_least_likely(self) -> None:
        """They follow from the probabilities, until those are too small to be told apart."""
        near, far = (spread(fake_run(5, 3), nats) for nats in (30, 400))
        for run, sent, within in ((near, False, 1e-3), (far, True, 0.01)):
            packed = pack(run)
            assert ("below" in packed.buffers) == sent
            assert np.abs(unpack(packed)["logit"] - run.dataset.logit.values).max() < within
            np.testing.assert_allclose(unpack(packed)["prob"], run.dataset.prob.values, rtol=1e-3, atol=1e-13)

    def test_probabilities_of_exactly_one_and_zero(self) -> None:
        run = fake_run(1, 1, ["resid_post"], k=2)
        run.dataset["prob"][...] = np.array([1.0, 0.0])
        run.dataset["logit"][...] = np.array([50.0, -np.inf])
        back = unpack(pack(run))
        assert back["prob"][..., 0] == 1
        assert back["prob"][..., 1] < 1e-13


class TestText:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            (" the", "·the"),
            ("\n\t", "⏎⇥"),
            ("\r\n", "\\r⏎"),
            ("\x00\x1b[0m", "\\x00\\x1b[0m"),
            ("a\u202eb", "a\\u202eb"),
            ("\u200b", "\\u200b"),
            ("\ufeff", "\\ufeff"),
            ("\xa0", "\\xa0"),
            ("\u3164", "\\u3164"),
            ("\U000e0041", "\\U000e0041"),
            ("\u0301", "◌\u0301"),
            ("", "∅"),
            ("👩‍👧", "👩‍👧"),
            ("a\u200db", "a\\u200db"),
            ("\ud800", "\\ud800"),
            ("مرحبا", "مرحبا"),
            ("\\xe2\\x80", "\\xe2\\x80"),
        ],
    )
    def test_everything_is_visible(self, text: str, shown: str) -> None:
        assert visible(text) == shown

    def test_running_text_keeps_its_white_space(self) -> None:
        assert visible("a b\n\u202e", keep=" \n") == "a b\n\\u202e"


class TestTable:
    def test_holds_only_its_own_elements(self) -> None:
        parsed = Parsed(table_html(fake_run(30, 6, hostile=True)))
        table = {"details", "summary", "table", "thead", "tbody", "tr", "th", "td"}
        known = table | {"div", "style", "p", "b", "code", "u", "small", "bdi"}
        assert set(parsed.tags) <= known
        focus = {"tabindex", "role", "aria-label", "data-lm-suppress-shortcuts"}
        assert {name for name, _ in parsed.attributes} <= {"class", "style", "title", "open"} | focus

    def test_fits_its_limit(self) -> None:
        big = fake_run(1500, 80, vocabulary=3000)
        html = table_html(big)
        assert 50_000 < len(html.encode()) < 150_000
        assert re.search(r"static view: \d+ of 1,500 positions \(0 to \d+\), layers 0–79 \(24 of 80\)", html)
        assert "<th>0</th>" in html
        assert "<th>79</th>" in html
        small = table_html(big, max_bytes=30_000)
        assert len(small.encode()) < 30_000
        assert "site resid_post (1 of 3)" in small
        assert "site resid_post" not in table_html(fake_run(6, 4))

    def test_hostile_tokens_fit_too(self) -> None:
        assert len(table_html(fake_run(400, 30, hostile=True, k=10)).encode()) < 150_000

    def test_the_answer_of_a_long_prompt_is_shown(self) -> None:
        html = table_html(fake_run(20, 30, prompt_positions=900), max_bytes=60_000)
        found = re.search(r"static view: (\d+) of 920 positions \(−4 to (\d+)\)", html)
        assert found
        shown = [f"−{p}" for p in (4, 3, 2, 1)] + [str(p) for p in range(int(found[2]) + 1)]
        assert re.findall(r"<tr[^>]*><th><small>([^<]*)</small>", html) == shown
        assert int(found[1]) == len(shown)
        assert re.findall(r'<tr class="lens-first"><th><small>([^<]*)</small>', html) == ["0"]

    def test_a_short_answer_leaves_room_for_more_of_the_prompt(self) -> None:
        html = table_html(fake_run(2, 30, prompt_positions=900), max_bytes=60_000)
        numbers = [int(number.replace("−", "-")) for number in re.findall(r"<tr[^>]*><th><small>([^<]*)</small>", html)]
        assert numbers == list(range(numbers[0], 2))
        assert numbers[0] < -4
        assert f"(−{-numbers[0]} to 1)" in html

    def test_small_runs_are_there_in_full(self) -> None:
        run = fake_run(6, 4)
        html = table_html(run)
        assert "6 of 6 positions, layers 0–3;" in html
        assert html.count("<td ") == 6 * 4 * 3

    def test_probabilities_are_the_run_s(self) -> None:
        run = fake_run(1, 1, ["resid_post"], k=1)
        assert f"<small>{100 * run.dataset.prob.item():.0f}</small>" in table_html(run)

    def test_no_probability_is_rounded_up_to_certainty(self) -> None:
        run = fake_run(3, 1, ["resid_post"])
        run.dataset["prob"].values[0, 0, :, 0] = [0.994, 0.9969, 1]
        html = table_html(run)
        assert re.findall("<small>([^<]*)</small></td>", html) == ["99", "&gt;99", "&gt;99"]
        assert re.findall('title="([^ ]*)', html) == ["99.4%", "99.7%", "&gt;99.9%"]

    def test_a_cell_without_numbers_has_none(self) -> None:
        html = table_html(without_numbers(fake_run(6, 4), layer=1, position=2))
        assert html.count("<td>–</td>") == 3
        assert html.count("<td ") == (6 * 4 - 1) * 3

    def test_no_positions(self) -> None:
        assert "no positions" in table_html(fake_run(0, 4))

    def test_an_interrupted_run_says_so(self) -> None:
        run = fake_run(3, 2)
        run.interrupted = True
        assert "interrupted" in table_html(run)


class TestPage:
    def test_hostile_tokens_stay_inside_the_data(self) -> None:
        page = page_html(fake_run(30, 6, hostile=True))
        assert page.encode()  # or it cannot be written to a file
        parsed = Parsed(page)
        assert len(parsed.scripts) == 2
        assert "img" not in parsed.tags
        header = json.loads(parsed.scripts[0])[0]["header"]
        texts = set(header["raw"].values()) | {t.replace("·", " ") for t in header["tokens"]}
        assert {text.encode("utf-8", "backslashreplace").decode() for text in HOSTILE} <= texts

    def test_the_policy_allows_this_script_and_no_network(self) -> None:
        parsed = Parsed(page_html(fake_run()))
        policy = next(v for n, v in parsed.attributes if n == "content" and v and "default-src" in v)
        digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
        assert "default-src 'none'" in policy
        assert f"script-src 'sha256-{digest}'" in policy
        assert "connect-src" not in policy
        assert "http" not in policy

    def test_names_no_address(self) -> None:
        # The name of SVG's vocabulary looks like an address and is never asked for.
        assert set(re.findall(r"https?://[^\s\"']*", page_html(fake_run()))) == {"http://www.w3.org/2000/svg"}


class TestHow:
    """Every view says how a run was made, if it is not the model and the logit lens alone."""

    def made(self, told: str = "mood <i> add α=-1.5 at resid_post of layer 4") -> FakeRun:
        run = fake_run(3, 2)
        run.options = {"steering": [told], "lens": {"kind": "tuned", "name": "m"}, "norm": "own"}
        return run

    def test_every_view_says_it(self) -> None:
        run, recorded = self.made(), "mood <i> add α=-1.5 at resid_post of layer 4 · tuned lens"
        said = recorded.replace("-1.5", "−1.5")
        escaped = said.replace("<i>", "&lt;i&gt;")
        assert f"<b>fake-model</b> · {escaped} · static view" in table_html(run)
        assert f"<title>fake-model – {escaped}</title>" in page_html(run)
        assert pack(run).header["how"] == said
        assert repr(show(run)) == f"Explorer(fake-model, {said}: 3 positions × 2 layers × 3 sites, top 5)"
        assert table_text(run).splitlines()[0].endswith(f"by layer · {recorded}")
        assert plot(run).axes[0].get_title() == "fake-model, residual stream\nmood <i> add α=−1.5 at resid_post of la…"
        plain = LensRun("", [1], [2], "a", ["resid_post"], [0], [0], {}, {}, options=run.options, provenance={"model": "m"})
        assert repr(plain).startswith(f"<LensRun of m, {recorded}: 1 token")

    def test_a_plain_run_says_nothing(self) -> None:
        run = fake_run(3, 2)
        run.options = {"steering": [], "lens": {"kind": "logit", "name": ""}, "norm": "own"}
        assert pack(run).header["how"] == ""
        assert "<b>fake-model</b> · static view" in table_html(run)
        assert "<title>fake-model – logit lens</title>" in page_html(run)
        assert "<title>fake-model – logit lens and mood add α=1</title>" in page_html(run, self.plain("mood add α=1"))

    def plain(self, told: str) -> FakeRun:
        run = self.made(told)
        run.options["lens"] = {"kind": "logit"}
        return run

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, ""),
            ({"steering": ["v ablate at resid_post of layer 1", "w add α=1.0 at mlp_out of layer 2"]}, "v ablate * · w add *"),
            ({"lens": {"kind": "basis", "name": "animals"}, "norm": "none"}, "basis animals · no norm"),
            ({"norm": "frozen"}, "frozen norm"),
            ({"lens": {"kind": ["x"]}, "steering": None}, ""),
            ({"steering": ["v\n\x1b[31m add"]}, r"v\n\x1b[31m add"),
            ({"steering": ["v" * 500]}, "v" * 199 + "…"),
        ],
    )
    def test_in_one_short_line(self, options: dict[str, Any], said: str) -> None:
        assert re.fullmatch(re.escape(said).replace(r"\*", ".*"), how_made(options))


class TestExplorer:
    def test_output_serves_readers_with_and_without_widgets(self) -> None:
        view = show(fake_run())
        data, _ = view._repr_mimebundle_()
        assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
        assert "static view: 12 of 12 positions" in data["text/html"]
        assert data["text/plain"] == "Explorer(fake-model: 12 positions × 6 layers × 3 sites, top 5)"

    def test_displaying_leaves_a_widget_and_a_table_behind_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        outputs: list[dict[str, object]] = []
        monkeypatch.setattr("IPython.display.display", lambda data, **kwargs: outputs.append(data))
        view = show(fake_run())
        view._ipython_display_()
        assert [set(data) for data in outputs] == [
            {"application/vnd.jupyter.widget-view+json", "text/plain"},
            {"text/html", "text/plain"},
        ]
        assert outputs[0]["text/plain"] == ""  # or a reopened notebook would show it right above the table
        assert f'data-lens-for="{view.fallback}"' in str(outputs[1]["text/html"])
        assert "most probable next token by layer" in str(outputs[1]["text/plain"])

    def test_static_is_plain_html(self) -> None:
        assert "<script" not in show(fake_run(), static=True)._repr_html_()

    def test_selected_is_checked_against_the_run(self) -> None:
        view = Explorer(fake_run())
        seen: list[dict[str, object]] = []
        view.observe(lambda change: seen.append(change["new"]), "selected")
        view.selected = {"site": "mlp_out", "layer": 2, "position": 3}
        assert seen == [{"site": "mlp_out", "layer": 2, "position": 3}]
        with pytest.raises(Exception, match=r"selected\['layer'\] is 6, and this run has layers 0 … 5"):
            view.selected = {"site": "mlp_out", "layer": 6, "position": 3}
        view.selected = {}

    def test_state_is_the_packed_run(self) -> None:
        run = fake_run(5, 2)
        state = Explorer(run).get_state()
        assert state["header"] == pack(run).header
        assert state["buffers"] == pack(run).to_bytes()

    def test_an_image_of_any_run_that_can_be_viewed(self, tmp_path: Path) -> None:
        written = Explorer(fake_run(5, 2)).to_svg(tmp_path / "run.svg").read_text(encoding="utf-8")
        assert "fake-model, residual stream" in written

    def test_empty_run(self) -> None:
        assert "no positions" in show(fake_run(0, 3))._repr_mimebundle_()[0]["text/html"]


class TestTwoRuns:
    def test_both_travel_with_their_names(self) -> None:
        one, other = fake_run(4, 3), fake_run(9, 3, seed=1)
        view = show(one, compare=other, names=("base", "steered"))
        assert view.header == {**pack(one).header, "name": "base"}
        assert view.other_header == {**pack(other).header, "name": "steered"}
        assert view.other_buffers == pack(other).to_bytes()
        view.selected = {"site": "mlp_out", "layer": 2, "position": 8}  # which only the second has
        with pytest.raises(Exception, match="has positions 0 … 8"):
            view.selected = {"site": "mlp_out", "layer": 2, "position": 9}

    def test_their_tables_share_the_room(self) -> None:
        big = fake_run(1500, 80, vocabulary=3000)
        html = show(big, compare=big)._repr_mimebundle_()[0]["text/html"]
        assert html.count("static view") == 2
        assert len(html.encode()) < 150_000

    def test_their_tables_say_which_is_which(self) -> None:
        one = fake_run(3, 2)
        names = ("unsteered", "mood <b>")
        html = show(one, compare=one, names=names)._repr_mimebundle_()[0]["text/html"]
        assert html.index("<b>unsteered</b>") < html.index("<b>mood &lt;b&gt;</b>")
        page = page_html(one, compare=one, names=names)
        assert "<b>unsteered</b>" in page.partition("<noscript>")[2]
        assert page.count('class="passage"') == 1  # the same text once
        assert page_html(one, compare=fake_run(3, 2, seed=1)).count('class="passage"') == 2

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"compare": 5}, "compare= takes a run, not int"),
            ({"compare": fake_run(3, 2), "names": ("a",)}, r"names= takes two texts, not \('a',\)"),
            ({"compare": fake_run(3, 2), "names": "ab"}, "names= takes two texts, not 'ab'"),
            ({"compare": fake_run(3, 2), "names": (1, 2)}, "names= takes two texts"),
        ],
    )
    def test_what_is_no_pair_is_refused(self, options: dict[str, Any], words: str) -> None:
        for view in (show, page_html):
            with pytest.raises(LensError, match=words):
                view(fake_run(3, 2), **options)


class TestLiveView:
    def view(self, **options: object) -> tuple[LiveView, list[dict[str, object]]]:
        view = LiveView("m", ["resid_post"], [0, 1], 2, **options)
        sent: list[dict[str, object]] = []
        view.send = lambda content, buffers=None: sent.append(content)
        return view, sent

    def variables(self, positions: int, token: int = 7) -> dict[str, np.ndarray]:
        cell = (1, 2, positions)
        names = ("target_rank", "target_prob", "entropy", "kl_final")
        each = {name: np.zeros((*cell, 2), np.float32) for name in ("logit", "prob")}
        return {"token_id": np.full((*cell, 2), token), **each, **{name: np.zeros(cell, np.float32) for name in names}}

    def test_tokens_are_told_once(self) -> None:
        view, sent = self.view()
        texts = {7: " a", 8: " b"}
        view.append([0], self.variables(1), [8], [7], texts)
        view.append([1], self.variables(1), [7], [7], texts)
        assert [message["tokens"] for message in sent] == [["·a", "·b"], []]
        assert [(message["inputs"], message["targets"]) for message in sent] == [([1], [0]), ([0], [0])]
        assert [message["seq"] for message in sent] == [0, 1]

    def test_text_is_sent_seldom_and_never_lost(self) -> None:
        view, sent = self.view()
        for _ in range(50):
            view.say("x")
        assert len(sent) < 5
        view.append([0], self.variables(1), [-1], [-1], {7: "a"})
        assert "".join(str(message["text"]) for message in sent) == 50 * "x"

    def test_a_heatmap_of_a_growing_run_is_refused(self, tmp_path: Path) -> None:
        view, _ = self.view()
        with pytest.raises(LensError, match="the run is not finished"):
            view.to_png(tmp_path / "run.png")
        assert not list(tmp_path.iterdir())

    def test_a_wrong_shape_is_refused(self) -> None:
        view, sent = self.view()
        with pytest.raises(ValueError, match=r"token_id should have the shape \(1, 2, 3, 2\), not \(1, 2, 1, 2\)"):
            view.append([0, 1, 2], self.variables(1), [-1], [-1], {})
        with pytest.raises(ValueError, match=r"kl_final should have the shape .*, not None"):
            view.append([0], {n: v for n, v in self.variables(1).items() if n != "kl_final"}, [-1], [-1], {})
        assert sent == []

    def test_stop_is_called_once_and_nonsense_is_ignored(self) -> None:
        stops: list[int] = []
        view, sent = self.view(on_stop=lambda: stops.append(1))
        for content in ({"type": "stop"}, {"type": "stop"}, {"type": "else"}, "stop", None, {"type": "since", "seq": "x"}):
            view._heard(view, content, [])
        assert stops == [1]
        assert sent == []

    @pytest.mark.parametrize("how", ["end", "finish"])
    def test_stop_stops_no_other_run(self, how: str) -> None:
        stops: list[int] = []
        view, sent = self.view(on_stop=lambda: stops.append(1))
        view.append([0], self.variables(1), [7], [7], {7: " a"})
        if how == "end":
            view.end()
        else:
            view.finish(fake_run(5, 2))
        view._heard(view, {"type": "stop"}, [])
        assert stops == []
        assert [message["over"] for message in sent] == ([False, True] if how == "end" else [False])

    def test_displayed_it_leaves_the_table_when_it_is_finished(self, monkeypatch: pytest.MonkeyPatch) -> None:
        outputs: list[dict[str, object]] = []
        monkeypatch.setattr("IPython.display.display", lambda data, **kwargs: outputs.append(data))
        view, _ = self.view()
        view._ipython_display_()
        assert [set(data) for data in outputs] == [{"application/vnd.jupyter.widget-view+json", "text/plain"}]
        assert outputs[0]["text/plain"] == ""  # it would speak of the run as it was before its first row
        run = fake_run(5, 2)
        view.finish(run)
        assert view.live is False
        assert view.header == pack(run).header
        assert view.buffers == pack(run).to_bytes()
        assert f'data-lens-for="{view.fallback}"' in str(outputs[1]["text/html"])


class TestBundle:
    def test_modules_keep_to_what_joining_them_needs(self) -> None:
        assert sorted(bundle.MODULES) == sorted(path.name for path in bundle.FOLDER.glob("*.js"))
        seen: set[str] = set()
        for name in bundle.MODULES:
            source = (bundle.FOLDER / name).read_text(encoding="utf-8")
            imported = set(re.findall(r'^import .* from "\./(.*)";$', source, re.MULTILINE))
            assert imported <= seen, f"{name} imports what comes after it: {imported - seen}"
            assert len(re.findall(r"^import\b", source, re.MULTILINE)) == len(imported)
            names = re.findall(r"^(?:export )?(?:async )?(?:function|class|const|let) (\w+)", source, re.MULTILINE)
            assert not seen & set(names), f"{name} defines a name that an earlier module has"
            seen |= {name, *names}

    def test_never_makes_markup_of_text(self) -> None:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|</script", bundle.script())

    @pytest.mark.skipif(not shutil.which("node"), reason="no node to check the syntax with")
    def test_is_one_valid_module(self) -> None:
        check = subprocess.run(
            ["node", "--check", "--input-type=module"], input=bundle.script(), text=True, capture_output=True
        )
        assert check.returncode == 0, check.stderr


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, lens_magic.view; print({'anywidget', 'numpy', 'xarray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_fake_run_is_consistent() -> None:
    run: FakeRun = fake_run(8, 4, hostile=True)
    data = run.to_xarray()
    assert (data.prob.diff("k") <= 0).all()
    assert (data.prob.sum("k") < 1).all()
    hit = data.token_id.isel(k=0) == np.array(run.output_ids)
    assert ((data.target_rank == 0) == hit).all()


def test_the_prompt_of_a_page_is_as_it_was_written() -> None:
    run = fake_run(9, 4)
    run.token_texts.update(dict.fromkeys(run.prompt_ids, "\\xe4"))
    run.prompt = "你好 می\u200cخواهم"
    page = page_html(run)
    assert f'<p class="passage" dir="auto">{run.prompt}<mark>' in page
