"""Unsteered and steered text: tokens, log-probabilities and display, against plain transformers, on 1 to 4 ranks."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import models
import numpy as np
import once
import probes
import pytest
import reference as ref
import torch
from steered import Change, steered
from test_steering import direction, width_of

import lens_magic as lens
from lens_magic import comparing
from lens_magic.errors import LensError
from lens_magic.model.tokens import first_difference
from lens_magic.session import current
from lens_magic.steer.compare import Side, SteeredText
from lens_magic.steer.term import SteeringTerm, Strength
from lens_magic.steer.vector import SteeringVector

Checkpoints = Callable[[str], Path]
TOKENS = 9
ALPHA = 60.0


def log_probs(model: Any, ids: Sequence[int], output: Sequence[int], changes: list[Change]) -> np.ndarray:
    """Of each token of the output, by one uncached forward."""
    with steered(model, changes, len(ids)):
        logits = ref.output_logits(model, [*ids, *output])[len(ids) - 1 : -1].numpy()
    return ref.log_softmax(logits)[np.arange(len(output)), list(output)]


@pytest.mark.parametrize("operator", ["add", "set"])
def test_both_texts_and_what_either_model_thinks_of_them(operator: str, ranks: int, checkpoints: Checkpoints) -> None:
    folder = checkpoints("qwen3-gqa")
    once.load(folder, ranks)
    v = direction(width_of(folder))
    term = SteeringTerm("test", {1: v}, "resid_post", ALPHA, operator=operator, positions="generated", decay=3.0)
    changes = [Change("resid_post", 1, v, lambda p: ALPHA * 0.5 ** (p / 3) if p >= 0 else None, operator)]
    compared = lens.compare(models.PROMPT, term, max_new_tokens=TOKENS, ignore_eos=True)

    model, tokenizer = once.plain(folder)
    ids = tokenizer(models.PROMPT)["input_ids"]
    for side, own in ((compared.unsteered, []), (compared.steered, changes)):
        with steered(model, own, len(ids)):
            assert list(side.output_ids) == ref.generate_ids(model, ids, TOKENS)
        np.testing.assert_allclose(side.log_probs_unsteered, log_probs(model, ids, side.output_ids, []), atol=2e-4)
        np.testing.assert_allclose(side.log_probs_steered, log_probs(model, ids, side.output_ids, changes), atol=2e-4)
    assert compared.unsteered.output_ids != compared.steered.output_ids, "the test should see a difference"
    assert max(abs(change) for change in compared.steered.log_prob_change) > 0.1
    assert compared.unsteered.text == lens.generate(models.PROMPT, TOKENS, ignore_eos=True).text
    assert compared.steered.text == lens.generate(models.PROMPT, TOKENS, ignore_eos=True, steer=term).text


@pytest.mark.parametrize("operator", ["add", "set"])
def test_strength_moved_while_tokens_come(operator: str, ranks: int, checkpoints: Checkpoints, replaying: None) -> None:
    """What rank 0 says is in effect from the next forward on, on every rank, within the one recorded step."""
    folder = checkpoints("qwen3-gqa")
    once.load(folder, ranks)
    current().group.call(probes.step_by, "replay", 256)
    v = direction(width_of(folder))
    seen = {"tokens": 0}

    def hear(event: tuple[Any, ...]) -> None:
        seen["tokens"] += event[0] == "token" and event[2] == 1

    def moved() -> list[Strength]:
        return [Strength(0.0 if seen["tokens"] < 4 else ALPHA, None if seen["tokens"] < 9 else 0.2)]

    compared = comparing.compare(
        current(),
        models.PROMPT,
        SteeringTerm("test", {1: v}, "resid_post", 0.0, operator=operator),
        max_new_tokens=2 * TOKENS,
        ignore_eos=True,
        live=moved,
        on_event=hear,
    )
    assert current().group.call(probes.replays)[0] == 2 * TOKENS - 3, "all but the first token, and the two of the recording"
    # Moved when four tokens were there: told with the fifth, and the sixth is chosen under it.
    assert compared.alphas == ((0.0,),) * 5 + ((ALPHA,),) * (2 * TOKENS - 5)
    assert compared.clips == ((None,),) * 10 + ((0.2,),) * (2 * TOKENS - 10)
    assert "α was moved from 0 to 60; clip was moved from none to 0.2" in repr(compared)
    changes = [
        Change("resid_post", 1, v, lambda p: 0.0 if p < 5 else None, operator),
        Change("resid_post", 1, v, lambda p: ALPHA if 5 <= p < 10 else None, operator),
        Change("resid_post", 1, v, lambda p: ALPHA if p >= 10 else None, operator, clip=0.2),
    ]
    model, tokenizer = once.plain(folder)
    ids = tokenizer(models.PROMPT)["input_ids"]
    with steered(model, changes, len(ids)):
        assert list(compared.steered.output_ids) == ref.generate_ids(model, ids, 2 * TOKENS)
    assert {p >= 10 for p in changes[2].limited} == {True}
    at = compared.first_difference
    assert at is not None
    assert operator == "set" or at >= 5
    assert compared.log_prob_change == ((), ())


@pytest.fixture
def replaying() -> Iterator[None]:
    yield
    current().group.call(probes.step_by, "usual")


def value(texts: dict[int, str], steered_ids: Sequence[int] = (1, 3)) -> SteeredText:
    return SteeredText(
        "a prompt",
        Side("one two", [1, 2], (-1.0, -2.0), (-3.0, -1.0)),
        Side("one three", list(steered_ids), (-1.0, -6.0), (-0.5, -0.25)),
        texts,
        steering=("<i>v</i> add α=2 at resid_post of layer 1",),
    )


def test_an_interrupt_while_texts_are_read_again_costs_neither(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their log-probabilities come of a second reading, which can be stopped where it takes several forwards."""
    from lens_magic.lens import compared as on_ranks
    from lens_magic.model import generate

    once.load(folder := checkpoints("qwen3-gqa"))
    term = SteeringTerm("test", {1: direction(width_of(folder))}, "resid_post", ALPHA)
    whole = lens.compare(models.PROMPT, term, max_new_tokens=TOKENS, ignore_eos=True)
    read_again = on_ranks._log_probs

    def stopped_meanwhile(*given: Any) -> Any:
        current().group.interrupt()
        return read_again(*given)

    monkeypatch.setattr(generate, "PREFILL_COLUMNS", 4)
    monkeypatch.setattr(on_ranks, "_log_probs", stopped_meanwhile)
    with pytest.raises(lens.Interrupted) as stopped:
        lens.compare(models.PROMPT, term, max_new_tokens=TOKENS, ignore_eos=True)
    part = stopped.value.result
    assert (part.unsteered.output_ids, part.steered.output_ids) == (whole.unsteered.output_ids, whole.steered.output_ids)
    assert part.interrupted
    assert "steered" in part._repr_html_()


def test_an_alpha_too_small_to_change_a_token_is_told(checkpoints: Checkpoints) -> None:
    """α is absolute, and of what was learnt only the vector knows the length."""
    once.load(checkpoints("llama-gqa"), 1)
    raw = direction(width_of(checkpoints("llama-gqa")))
    vector = SteeringVector.of({1: 20 * raw, 2: 4 * raw}, "resid_post", name="warm")

    def compare(*steer: Any) -> SteeredText:
        return lens.compare(models.PROMPT, steer, max_new_tokens=4, ignore_eos=True)

    words = "both texts are the same: α of 'warm' is 0.3% of the length of what it was learnt from (20); α nearer"
    with pytest.warns(UserWarning, match=re.escape(words)):
        assert compare(vector.steer(0.06, layers=1)).first_difference is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare(vector * 20).first_difference is not None
        compare(vector * 0.5)  # at one layer more than a tenth
        compare(vector * 1e-3, SteeringTerm("bare", {1: raw}, "resid_post", 1e-3))  # of this no length is known
        compare(vector.steer(1e-3, site="mlp_out"))  # whose states the length is not of
        compare(vector.steer(layers=1, positions="last", operator="ablate"))


def test_an_interrupt_while_texts_are_written_stops_no_second_reading(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_magic.model import generate

    once.load(folder := checkpoints("qwen3-gqa"))
    term = SteeringTerm("test", {1: direction(width_of(folder))}, "resid_post", ALPHA)
    monkeypatch.setattr(generate, "PREFILL_COLUMNS", 4)
    came = []

    def stop(event: tuple[Any, ...]) -> None:
        came.append(event)
        if [one[0] for one in came].count("token") == 6:
            current().group.interrupt()

    with pytest.raises(lens.Interrupted) as stopped:
        comparing.compare(current(), models.PROMPT, term, max_new_tokens=50, ignore_eos=True, on_event=stop)
    part = stopped.value.result
    for side in (part.unsteered, part.steered):
        assert 0 < len(side.output_ids) < 50
        assert len(side.log_probs_unsteered) == len(side.log_probs_steered) == len(side.output_ids)


def test_texts_are_read_again_in_pieces_of_any_length(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_magic.lens import compared as on_ranks

    once.load(folder := checkpoints("qwen3-gqa"))
    term = SteeringTerm("test", {1: direction(width_of(folder))}, "resid_post", ALPHA)
    whole = lens.compare(models.PROMPT, term, max_new_tokens=TOKENS, ignore_eos=True)
    for length in (1, 3, TOKENS - 1):
        monkeypatch.setattr(on_ranks, "_POSITIONS_AT_ONCE", length)
        cut = lens.compare(models.PROMPT, term, max_new_tokens=TOKENS, ignore_eos=True)
        for side, own in ((whole.unsteered, cut.unsteered), (whole.steered, cut.steered)):
            np.testing.assert_allclose(own.log_probs_unsteered, side.log_probs_unsteered, atol=1e-5)
            np.testing.assert_allclose(own.log_probs_steered, side.log_probs_steered, atol=1e-5)


def test_one_prompt_takes_one_alpha(checkpoints: Checkpoints) -> None:
    once.load(folder := checkpoints("qwen3-gqa"))
    v = {1: direction(width_of(folder))}
    run = lens.run(models.PROMPT, 3)
    for alphas in ((1.0, 5.0), (1.0, 2.0, 3.0)):
        for ask in (lambda steer: lens.compare(models.PROMPT, steer, 3), lambda steer: lens.diff(run, steer)):
            with pytest.raises(LensError, match=f"{len(alphas)} values of alpha for 1 sequences"):
                ask(SteeringTerm("test", v, "post_ln", alphas))
    one, single = (lens.diff(run, SteeringTerm("test", v, "post_ln", alpha)).kl for alpha in ((5.0,), 5.0))
    assert np.array_equal(one, single)


def test_what_was_asked_for_in_numbers_of_numpy_is_written(checkpoints: Checkpoints, tmp_path: Path) -> None:
    once.load(folder := checkpoints("qwen3-gqa"))
    term = SteeringTerm("test", {1: direction(width_of(folder))}, "post_ln", 3.0)
    asked = {"seed": np.int64(7), "temperature": np.float32(0.5), "top_p": torch.tensor(0.5)}
    compared = lens.compare(models.PROMPT, term, 2, **asked)
    assert {name: repr(compared.options[name]) for name in asked} == {"seed": "7", "temperature": "0.5", "top_p": "0.5"}
    assert SteeredText.load(compared.save(tmp_path / "texts.json")) == compared


def test_captions_are_short() -> None:
    """And hold no more of a schedule than its ends, though the record has all of it."""
    steering = f"v add α=1.0 at post_ln of layer 1; schedule {' '.join(str(1 - n / 7) for n in range(7))}; clip 0.5"
    shown = repr(replace(value({1: "a", 2: "b", 3: "c"}), steering=(steering, "w; schedule cos")))
    assert shown.startswith(
        "v add α=1.0 at post_ln of layer 1; schedule 1 0.857 0.714 0.571 … 0.143; clip 0.5; w; schedule cos: "
    )


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("v add α=-0.3900000000000001 at post_ln of layer 1", "v add α=-0.39 at post_ln of layer 1"),
        ("v set α=(0.1234567, -2.0) at post_ln of layer 3,4,5", "v set α=(0.1235, -2.0) at post_ln of layers 3–5"),
        ("v ablate at post_ln of layer 1,2; clip 0.5", "v ablate at post_ln of layers 1, 2; clip 0.5"),
        ("v add α=1.0 at post_ln of layer 1,3,4", "v add α=1.0 at post_ln of layers 1, 3, 4"),
    ],
)
def test_captions_have_few_digits_and_ranges(recorded: str, shown: str) -> None:
    made = replace(value({1: "a", 2: "b", 3: "c"}), steering=(recorded,))
    assert repr(made).startswith(f"{shown}: ")
    assert f"<p>{shown.replace('-', '−')}: " in made._repr_html_()
    assert made.steering == (recorded,)


def test_marks_and_shades_are_of_words_without_the_space_before_them() -> None:
    """A line may end after the space, where it would be a marked piece by itself."""
    html = value({1: " one", 2: "  <two", 3: " "})._repr_html_()
    assert re.search(r' <span style="[^"]*" title="[^"]*">one</span>  <mark [^>]*>&lt;two</mark></div>', html)
    assert re.search(r"</span><mark [^>]*> </mark></div>", html)


def test_an_end_token_is_not_in_the_texts_unless_they_part_there(tmp_path: Path) -> None:
    texts = {1: "one", 2: "<end>", 3: "three"}
    parting = replace(value(texts), end_ids=(2,))
    assert "▸<end>" in repr(parting)
    assert "&lt;end&gt;</mark>" in parting._repr_html_()
    alike = SteeredText.load(replace(value(texts, (1, 2)), end_ids=(2,)).save(tmp_path / "texts.json"))
    assert "end" not in repr(alike)
    assert "&lt;end&gt;" not in alike._repr_html_()


def test_what_joins_letters_stays_in_the_texts() -> None:
    assert ">می\u200cخواهم</span>" in value({1: " می\u200cخواهم", 2: "b", 3: "c"})._repr_html_()


def test_both_texts_are_beside_each_other_without_a_style_sheet() -> None:
    """As in a notebook that is not trusted."""
    tags = Tags(re.sub("<style>.*</style>", "", value({1: "a", 2: "b", 3: "c"})._repr_html_(), flags=re.DOTALL)).found
    styles = {attributes.get("class"): attributes.get("style") or "" for tag, attributes in tags if tag == "div"}
    assert "display:flex" in styles[None]
    assert "flex:1 1 260px" in styles["lens-column"]
    assert "white-space:pre-wrap" in styles["lens-text"]


def test_what_a_file_says_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;gone\x07"
    made = replace(value({1: evil, 2: "b", 3: "c"}), steering=(evil,), prompt=evil)
    shown = repr(SteeredText.load(made.save(tmp_path / "texts.json")))
    assert "gone" in shown
    assert shown.replace("\n", "").isprintable()


def test_a_value_is_written_and_read(tmp_path: Path) -> None:
    whole = replace(value({1: "é\u202e", 2: "</script>", 3: "\n"}), alphas=((1.0,), (2.5,)))
    path = whole.save(tmp_path / "texts.json")
    assert SteeredText.load(path) == whole
    assert whole.log_prob_change == ((-2.0, 1.0), (0.5, 5.75))
    (tmp_path / "other.json").write_text('{"format": "something"}')
    (tmp_path / "broken.json").write_text('{"format": "lens-magic steered text 1"}')
    record = json.loads(path.read_text())
    record["steered"]["log_probs_steered"].pop()
    (tmp_path / "unequal.json").write_text(json.dumps(record))
    refused = {"other.json": "no steered text", "nothing.json": "there is no file", "broken.json": "it has no 'unsteered'"}
    refused["unequal.json"] = "its tokens have probabilities under one model only"
    for name, words in refused.items():
        with pytest.raises(LensError, match=words):
            SteeredText.load(tmp_path / name)


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_hostile_tokens_stay_text_and_the_first_difference_is_marked() -> None:
    html = value({1: "<img src=x onerror=alert(1)>", 2: '"><script>', 3: "\u202ea\u0301\x00"})._repr_html_()
    tags = Tags(html).found
    assert {tag for tag, _ in tags} <= {"div", "style", "p", "b", "span", "mark"}, (
        "no heading, which JupyterLab would list among the notebook's"
    )
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "\u202e" not in html
    assert "\x00" not in html
    # By its element too: readers of notebooks drop style sheets, and the legend speaks of what is marked.
    marked = [attributes["title"] for tag, attributes in tags if tag == "mark" and "title" in attributes]
    assert marked == [
        "log p −2.00 unsteered, −1.00 steered: +1.00",
        "log p −6.00 unsteered, −0.25 steered: +5.75",
    ]


@pytest.mark.parametrize(
    ("one", "other", "at"), [((1, 2), (1, 2), None), ((1, 2), (1, 3), 1), ((1,), (1, 2), 1), ((), (), None), ((4,), (5,), 0)]
)
def test_first_difference(one: tuple[int, ...], other: tuple[int, ...], at: int | None) -> None:
    assert first_difference(one, other) == first_difference(other, one) == at
