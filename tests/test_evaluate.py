"""Steerability against plain transformers with hooks: unsharded, float32, one prompt and one α at a time."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import once
import probes
import pytest
import reference as ref
import torch
from steering_items import STEMS, asked
from steering_items import questions as items
from transformers import PreTrainedModel

import lens_magic as lens
from lens_magic import steerability, vectors
from lens_magic.errors import LensError
from lens_magic.model.load import MODEL
from lens_magic.session import Session, current
from lens_magic.steer.intervene import Steering
from lens_magic.steer.measure import Propensities, Sweep, measure
from lens_magic.steer.vector import SteeringVector, Training

Checkpoints = Callable[[str], Path]
ALPHAS = (-1.5, -0.5, 0.5, 1.5)
TEXTS = (
    "What is the answer? (A) yes (B) no. The answer is (",
    "What is the answer? (A) no, not yet (B) yes. The answer is (",  # begins like the one before
    "A lens gathers the light of a distant lamp. (A) nearer (B) farther (",
    "(A) 4 (B) 20 (",
    "She read the letters through it: first the capitals, then the small print. (A) grain (B) glass. Answer: (",
)
# Sums split over ranks round differently, and steep random weights magnify it.
CLOSE = 1e-4


def expected(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[tuple[int, int]],
    site: str,
    directions: dict[int, torch.Tensor],
    alphas: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Unsteered ``[prompt]`` and steered ``[layer, direction, prompt, alpha]`` propensities."""

    def propensity(prompt: Sequence[int], label: tuple[int, int]) -> float:
        logits = ref.output_logits(model, prompt)[-1]
        return float(logits[label[0]] - logits[label[1]])

    unsteered = np.array([propensity(*each) for each in zip(prompts, labels, strict=True)])
    found = np.zeros((len(directions), len(next(iter(directions.values()))), len(prompts), len(alphas)))
    for place, layer in enumerate(sorted(directions)):
        for number, direction in enumerate(directions[layer]):
            for column, alpha in enumerate(alphas):
                with ref.added(model, site, layer, alpha * direction):
                    found[place, number, :, column] = [propensity(*each) for each in zip(prompts, labels, strict=True)]
    return unsteered, found


def unit_directions(width: int, layers: Sequence[int], count: int = 2) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    found = {}
    for layer in layers:
        drawn = torch.randn((count, width), generator=generator)
        found[layer] = drawn / drawn.norm(dim=1, keepdim=True)
    return found


def swept(session: Session, sweep: Sweep, **options: Any) -> Propensities:
    measured: Propensities = session.group.call(measure, sweep, **options)[0]
    return measured


# Of two vocabulary shards, and not the same for all prompts.
LABELS = ((34, 35), (35, 34), (35, 34), (34, 35), (200, 7))


@functools.cache
def expected_at(folder: Path, site: str) -> tuple[np.ndarray, np.ndarray]:
    """What plain transformers say of the prompts at every layer, which is the same on any number of ranks."""
    model, tokenizer = once.plain(folder)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    directions = unit_directions(model.config.hidden_size, range(model.config.num_hidden_layers))
    return expected(model, prompts, LABELS, site, directions, ALPHAS)


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-odd", "gemma2", "mistral-window"])
@pytest.mark.parametrize("ranks", [1, 2, 3], scope="session")  # with the other tests of as many
def test_propensities_equal_plain_transformers(checkpoints: Checkpoints, name: str, ranks: int) -> None:
    """Resumed behind the change, and whole."""
    folder = checkpoints(name)
    once.load(folder, ranks)
    model, tokenizer = once.plain(folder)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    directions = unit_directions(model.config.hidden_size, range(model.config.num_hidden_layers))
    for resume in (True, False):
        for site in ref.SITES if ranks == 2 and resume else ("post_ln", "resid_pre"):
            measured = swept(current(), Sweep(prompts, LABELS, site, directions, ALPHAS, resume=resume))
            unsteered, steered = expected_at(folder, site)
            np.testing.assert_allclose(measured.unsteered, unsteered, atol=CLOSE)
            np.testing.assert_allclose(measured.steered, steered, atol=CLOSE)
            assert measured.resumed == resume
            assert np.abs(steered - unsteered[:, None]).max() > 0.05  # it did steer


def test_prompts_longer_than_the_attention_window_beside_short_ones_that_share_a_row() -> None:
    """A batch has one mask for all of its rows, and that of a shared row knows no window."""
    model = models.create("mistral-window")
    model.config.sliding_window = 24
    lens.attach(model, models.tokenizer_of(311))
    prompts = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 10, 11], [*range(20, 60)]]
    labels, directions = LABELS[:3], unit_directions(model.config.hidden_size, [1])
    measured = swept(current(), Sweep(prompts, labels, "post_ln", directions, ALPHAS))
    unsteered, steered = expected(model, prompts, labels, "post_ln", directions, ALPHAS)
    np.testing.assert_allclose(measured.unsteered, unsteered, atol=CLOSE)
    np.testing.assert_allclose(measured.steered, steered, atol=CLOSE)


def test_many_directions_share_forwards_by_twos(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that neither memory nor the time for each of them grows with their number; one is left over."""
    folder = checkpoints("llama-gqa")
    once.load(folder)
    model, tokenizer = once.plain(folder)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    directions = unit_directions(model.config.hidden_size, [1, 3], count=5)
    made: list[tuple[int, int]] = []

    def noted(loaded: Any, terms: Any, batch: int) -> Steering:
        made.append((len(terms), batch))
        return Steering(loaded, terms, batch)

    monkeypatch.setattr("lens_magic.steer.measure.Steering", noted)
    measured = swept(current(), Sweep(prompts, LABELS, "post_ln", directions, ALPHAS, tokens=200))
    unsteered, steered = expected(model, prompts, LABELS, "post_ln", directions, ALPHAS)
    np.testing.assert_allclose(measured.unsteered, unsteered, atol=CLOSE)
    np.testing.assert_allclose(measured.steered, steered, atol=CLOSE)
    assert {terms for terms, _ in made} == {1, 2}
    assert max(batch for _, batch in made) <= 2 * len(ALPHAS) * len(prompts)
    assert measured.complete.all()
    made.clear()

    def stopping(loaded: Any, terms: Any, batch: int) -> Steering:
        current().group.interrupt()
        return noted(loaded, terms, batch)

    monkeypatch.setattr("lens_magic.steer.measure.Steering", stopping)
    with pytest.raises(KeyboardInterrupt):
        lens.evaluate(vector_of(directions), items(), layers=1, random_directions=20)
    assert len(made) == 1


FAMILIES = ("opt", "neox-parallel", "neox-sequential", "gemma3-text", "olmo2", "phi", "phi3", "gpt2", "mixtral", "qwen3-moe")


@pytest.mark.parametrize("name", FAMILIES)
def test_propensities_of_other_families(checkpoints: Checkpoints, name: str) -> None:
    """What is skipped hangs on how a family's blocks call their parts: tuples, tokens in one row, parallel residuals.

    Phi's head has a bias.
    """
    folder = checkpoints(name)
    model, tokenizer = once.plain(folder)
    once.load(folder)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS[:2]]
    labels = [(34, 35), (35, 34)]
    directions = unit_directions(model.config.hidden_size, range(model.config.num_hidden_layers), count=1)
    for site in ref.SITES:
        measured = swept(current(), Sweep(prompts, labels, site, directions, (-2.0, 3.0)))
        unsteered, steered_ones = expected(model, prompts, labels, site, directions, (-2.0, 3.0))
        np.testing.assert_allclose(measured.unsteered, unsteered, atol=CLOSE)
        np.testing.assert_allclose(measured.steered, steered_ones, atol=CLOSE)


# -- evaluate -------------------------------------------------------------------------------------------------------------


def vector_of(directions: dict[int, torch.Tensor], **options: Any) -> SteeringVector:
    raw = {layer: drawn[0] * (layer + 2) for layer, drawn in directions.items()}
    return SteeringVector.of(raw, **{"site": "post_ln", "name": "planted", **options})


@pytest.fixture
def llama(checkpoints: Checkpoints) -> tuple[PreTrainedModel, Any]:
    folder = checkpoints("llama-gqa")
    once.load(folder)
    return once.plain(folder)


@pytest.mark.parametrize("ranks", [1, 2], scope="session")
def test_a_report_holds_what_plain_transformers_say(checkpoints: Checkpoints, ranks: int) -> None:
    folder = checkpoints("llama-gqa")
    model, tokenizer = once.plain(folder)
    once.load(folder, ranks)
    vector = vector_of(unit_directions(128, [1, 3]))
    report = lens.evaluate(vector, items(), alphas=(1, -1.5, 0))
    assert report.alphas == (-1.5, 0.0, 1.0)
    assert report.layers == (1, 3)
    assert report.propensities.shape == (2, 2, 5, 2, 3)
    label_a, label_b = (tokenizer(f" ({letter}")["input_ids"][-1] for letter in "AB")
    for matching, labels in enumerate([(label_a, label_b), (label_b, label_a)]):
        texts = [asked(stem, *((yes, no), (no, yes))[matching]) + " (" for stem, yes, no in STEMS]
        prompts = [tokenizer(text)["input_ids"] for text in texts]
        directions = {layer: vector.directions[layer][None] for layer in report.layers}
        unsteered, steered = expected(model, prompts, [labels] * 5, "post_ln", directions, (-1.5, 1.0))
        np.testing.assert_allclose(report.unsteered[:, matching], unsteered, atol=CLOSE)
        np.testing.assert_allclose(report.propensities[0, :, :, matching, [0, 2]].transpose(1, 2, 0), steered[:, 0], atol=CLOSE)
        np.testing.assert_array_equal(report.propensities[:, :, :, matching, 1] - report.unsteered[:, matching], 0)
    assert report.labels == {"A": "A", "B": "B"}
    assert report.counts == {"test": 5, "unmeasured": 0, "train": 0, "excluded": 0, "rejected": 0}
    assert report.norms == pytest.approx({1: 3.0, 3: 5.0})
    assert report.provenance["ranks"] == ranks


def test_questions_are_asked_in_the_chat_that_the_vector_was_learnt_in(
    llama: tuple[PreTrainedModel, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = llama
    template = "{% for m in messages %}<|user|>[{{ m.role }}] {{ m.content }}<|end|>{% endfor %}"
    monkeypatch.setattr(current().require_model().tokenizer, "chat_template", template)
    vector = vector_of(unit_directions(128, [1]), training=Training(chat=True))
    plain, chat = (lens.evaluate(vector, items(), alphas=(-1, 1), chat=chat) for chat in (False, None))
    assert (plain.provenance["chat"], chat.provenance["chat"]) == (False, True)
    label_a, label_b = (tokenizer(f" ({letter}")["input_ids"][-1] for letter in "AB")
    for matching, labels in enumerate([(label_a, label_b), (label_b, label_a)]):
        asks = [asked(stem, *((yes, no), (no, yes))[matching]) for stem, yes, no in STEMS]
        texts = [f"<|user|>[user] {text}<|end|><|user|>[assistant]  (" for text in asks]
        for report, written in ((chat, texts), (plain, [f"{text} (" for text in asks])):
            prompts = [tokenizer(text)["input_ids"] for text in written]
            directions = {1: vector.directions[1][None]}
            unsteered, steered = expected(model, prompts, [labels] * 5, "post_ln", directions, (-1.0, 1.0))
            np.testing.assert_allclose(report.unsteered[:, matching], unsteered, atol=CLOSE)
            np.testing.assert_allclose(report.propensities[0, 0, :, matching], steered[0, 0], atol=CLOSE)
    assert np.abs(plain.unsteered - chat.unsteered).max() > 0.05
    again = lens.evaluate(vector_of(unit_directions(128, [1])), items(), alphas=(-1, 1), chat=True)
    np.testing.assert_array_equal(again.propensities, chat.propensities)


def test_alphas_that_are_small_beside_the_difference_are_told(llama: object, recwarn: pytest.WarningsRecorder) -> None:
    """α is absolute, and a real model's states are hundreds of times as long as the demo model's."""
    directions = {layer: drawn[0] for layer, drawn in unit_directions(128, [1, 2, 3]).items()}
    vector = SteeringVector(directions, {1: 3.0, 2: 37.5, 3: 300.0}, "resid_post")
    said = (
        r"^α up to 1\.5 is a small part of the learnt difference at resid_post of layer 2 \(4\.0%\), layer 3 \(0\.5%\): "
        r"nothing may move; it is 37\.5 to 300 long: layers measured apart, or in units of it \(unit norm\), would tell$"
    )
    with pytest.warns(UserWarning, match=said) as told:
        lens.evaluate(vector, items(), alphas=(-1, 1.5))
    assert told[0].filename == __file__
    said = r"of layer 3 \(0\.5%\): nothing may move; alphas of -300:300:75, say, would reach it$"
    with pytest.warns(UserWarning, match=said):
        lens.evaluate(vector, items(), alphas=(-1, 1.5), layers=3)
    many = replace(vector, norms={0: 20.0, 1: 30.0, 2: 40.0, 3: 60.0}, directions={0: directions[1], **directions})
    said = r"of 4 layers from 0 to 3 \(2\.5% to 7\.5%\): nothing may move; alphas of -60:60:15, say, would reach it$"
    with pytest.warns(UserWarning, match=said):
        lens.evaluate(many, items(), alphas=(-1, 1.5))
    for enough in ({"alphas": (-40, 40)}, {"layers": [1]}, {"reuse_layer": 1, "layers": [3]}, {"site": "post_ln"}):
        lens.evaluate(vector, items(), **{"layers": [2], "alphas": (-1.5, 1.5), **enough})
    assert not recwarn.list


def test_alphas_may_be_in_units_of_what_was_learnt_at_each_layer(llama: object, tmp_path: Path) -> None:
    vector = vector_of(unit_directions(128, [1, 3]))
    report = lens.evaluate(vector, items(), alphas=(-6, 0, 5), unit="norm", random_directions=2)
    table = report.summary()
    for place, layer in enumerate(report.layers):
        norm = vector.norms[layer]
        alone = lens.evaluate(vector, items(), (-6 * norm, 0, 5 * norm), layer, random_directions=2)
        np.testing.assert_allclose(report.propensities[:, place], alone.propensities[:, 0], atol=CLOSE)
        np.testing.assert_allclose(report.slopes[place], norm * alone.slopes, atol=CLOSE)
        for column in ("alpha_for_0.3", "multiplier_for_0.3"):
            np.testing.assert_allclose(table[column][layer], alone.summary()[column][layer], rtol=1e-2)
    assert table["alpha_for_0.3"].notna().any(), "the test should see one"
    assert "α in norms of what was learnt" in report.title
    assert report.plot().axes[0].get_xlabel() == "α in norms"
    assert lens.open_report(report.save(tmp_path / "r.nc")).unit == "norm"
    with pytest.raises(LensError, match="unit 'sigma' is not one of absolute, norm"):
        lens.evaluate(vector, items(), unit="sigma")
    with pytest.raises(LensError, match=r"α of .* is more than the model can compute with"):
        lens.evaluate(vector, items(), alphas=(-5e18, 5e18), unit="norm")


def test_reports_without_a_unit_are_of_absolute_alphas(llama: object, tmp_path: Path) -> None:
    """As versions before it wrote them."""
    import h5py

    path = lens.evaluate(vector_of(unit_directions(128, [1])), items(), alphas=(-1, 1)).save(tmp_path / "r.nc")
    with h5py.File(path, "r+") as file:
        record = json.loads(file.attrs["report"])
        assert record.pop("unit") == "absolute"
        file.attrs["report"] = json.dumps(record)
    assert lens.open_report(path).unit == "absolute"


def test_random_directions_are_as_long_seeded_and_each_layers_own(llama: object, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Sweep] = []
    make = steerability.Sweep
    monkeypatch.setattr(steerability, "Sweep", lambda **fields: sent.append(make(**fields)) or sent[-1])
    vector = vector_of(unit_directions(128, [0, 2]))
    for layers, seed in ((None, 0), ([2], 0), ([2], 1), ([2], 2**50 + 5), ([2], 6 - 2**200)):
        lens.evaluate(vector, items(), alphas=(-1, 1), layers=layers, random_directions=3, seed=seed)
    both, alone, other, *large = (sweep.directions for sweep in sent)
    for drawn in both.values():
        torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4))
        assert (drawn @ drawn.T - torch.eye(4)).abs().max() < 0.4  # not one another, nor the vector
    assert torch.equal(both[2], alone[2])
    assert not torch.equal(both[0][1], both[2][1])
    assert not torch.equal(other[2][1], alone[2][1])
    assert torch.equal(other[2][0], alone[2][0])
    assert len({float(drawn[2][1, 0]) for drawn in (alone, other, *large)}) == 4
    for seed in (0, 7, -5):  # as saved reports name them
        drawn = torch.randn((1, 128), generator=torch.Generator().manual_seed(seed * 100_003 + 2))
        found = steerability._beside_random(both[2][0], 2, 1, seed)
        torch.testing.assert_close(found[1], drawn[0] / drawn.norm())


def test_training_questions_are_left_out(llama: object) -> None:
    vector = vectors.train(current(), items(STEMS[:2]), layers=[2], name="seen")
    # The other order of a question the vector knows is no new question.
    swapped = [(stem, no, yes) for stem, yes, no in STEMS]
    again = [
        {
            **item,
            "question": asked(*stem) if "(A)" in item["answer_not_matching_behavior"] else asked(stem[0], stem[2], stem[1]),
        }
        for item, stem in zip(items(), swapped, strict=True)
    ]
    rejected = {**items()[0], "answer_matching_behavior": " (C)"}
    for data in (items(), again):
        report = lens.evaluate(vector, [*data, rejected], alphas=(-1, 1))
        assert report.counts == {"test": 3, "unmeasured": 0, "train": 2, "excluded": 2, "rejected": 1}
        assert all(any(stem[0] in text for stem in STEMS[2:]) for text in report.questions)
    assert "3 test questions" in repr(report)
    assert "2 training items; 2 in both and left out; 1 rejected" in repr(report)
    with pytest.raises(LensError, match="all 2 questions are among those the vector was trained on"):
        lens.evaluate(vector, items(STEMS[:2]))


def test_a_single_question_is_evaluated(llama: object) -> None:
    vector = vector_of(unit_directions(128, [1]))
    report = lens.evaluate(vector, items(STEMS[:1]), alphas=(-1, 1))
    together = lens.evaluate(vector, items(STEMS[:2]), alphas=(-1, 1))
    np.testing.assert_allclose(report.propensities, together.propensities[:, :, :1], atol=CLOSE)
    assert report.counts["test"] == 1
    assert report.slopes.shape == (1,)
    assert "nan" not in repr(report)  # what a single prompt does not tell is left empty


def test_a_direction_towards_the_letter_a_is_not_steering(llama: tuple[PreTrainedModel, Any]) -> None:
    """Planted: it raises the logit of A over B, whatever A says."""
    model, tokenizer = llama
    a, b = (tokenizer(f" ({letter}")["input_ids"][-1] for letter in "AB")
    weight = model.lm_head.weight.detach()
    vector = SteeringVector.of({3: (weight[a] - weight[b]) * model.model.norm.weight.detach()}, site="resid_post")
    row = lens.evaluate(vector, items(), alphas=(-1.5, 0, 1.5)).summary().loc[3]
    assert row["label_slope"] > 0.1
    assert abs(row["mean_slope"]) < 0.1 * row["label_slope"]


def test_a_direction_can_be_reused_at_other_layers(llama: tuple[PreTrainedModel, Any]) -> None:
    vector = vector_of(unit_directions(128, [1]))
    report = lens.evaluate(vector, items(), alphas=(-1, 1), reuse_layer=-3)
    assert (report.layers, report.provenance["reuse_layer"]) == ((0, 1, 2, 3), 1)
    assert set(report.norms.values()) == set(vector.norms.values())
    model, tokenizer = llama
    prompt = tokenizer(asked(*STEMS[0]) + " (")["input_ids"]
    a, b = (tokenizer(f" ({letter}")["input_ids"][-1] for letter in "AB")
    directions = dict.fromkeys(range(4), vector.directions[1][None])
    _, steered = expected(model, [prompt], [(a, b)], "post_ln", directions, (-1, 1))
    np.testing.assert_allclose(report.propensities[0, :, 0, 0], steered[:, 0, 0], atol=CLOSE)


def test_positions_are_those_of_a_steering_term(llama: tuple[PreTrainedModel, Any]) -> None:
    """``last`` is the last token before the label, whatever the padding."""
    vector = vector_of(unit_directions(128, [3]), site="resid_post")
    last, whole, before = (lens.evaluate(vector, items(), (-20, 20), positions=where) for where in ("last", "all", "prompt"))
    np.testing.assert_allclose(last.propensities, whole.propensities, atol=CLOSE)  # nothing looks back after the last block
    moved = [np.abs(np.diff(report.propensities[0], axis=-1)).max() for report in (last, before)]
    assert moved[0] > 0.1
    assert moved[1] < CLOSE


@pytest.mark.parametrize(("positions", "columns"), [("all", [18]), ("prompt", [11, 11])])
def test_what_prompts_begin_with_runs_once(
    llama: object, positions: str, columns: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all positions are steered; others are counted from each prompt's end, so each prompt has a row of its own."""
    begins = [9, 8, 7, 6]
    prompts = [[*begins, *rest] for rest in ([1] * 7, [2] * 7)]
    first = current().group.rank.store[MODEL].model.model.layers[0]
    own, seen = first.forward, []

    def counting(hidden: torch.Tensor, **named: Any) -> torch.Tensor:
        seen.extend([hidden.shape[1]] * (hidden.shape[0] // len(ALPHAS) or 1))
        return own(hidden, **named)

    monkeypatch.setattr(first, "forward", counting)
    sweep = Sweep(prompts, [(34, 35)] * 2, "resid_pre", unit_directions(128, [0], 1), ALPHAS, positions, resume=False)
    swept(current(), sweep)
    assert seen[-len(columns) :] == columns


@pytest.mark.parametrize(
    ("site", "attention", "mlp"),
    [
        # A layer's own trial, then once a batch unsteered, then for each layer what comes after the change there.
        ("post_ln", [2, 3, 4, 5], [3, 4, 5, 7]),
        ("resid_pre", [3, 4, 5, 7], [3, 4, 5, 7]),
        ("resid_post", [2, 3, 4, 5], [2, 3, 4, 5]),
    ],
)
def test_what_comes_before_the_change_runs_once(
    llama: object, site: str, attention: list[int], mlp: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By counting calls of every block's attention and MLP."""
    prompts, labels = [[5, 6, 7]] * 3, [(34, 35)] * 3
    model = current().group.rank.store[MODEL].model
    counts = {"self_attn": [0] * 4, "mlp": [0] * 4}
    for at, block in enumerate(model.model.layers):
        for name, of in counts.items():
            module = getattr(block, name)

            def counting(*given: Any, own: Any = module.forward, of: list[int] = of, at: int = at, **named: Any) -> Any:
                of[at] += 1
                return own(*given, **named)

            monkeypatch.setattr(module, "forward", counting)
    found = {}
    for resume in (True, False):
        for of in counts.values():
            of[:] = [0] * 4
        sweep = Sweep(prompts, labels, site, unit_directions(128, range(4)), ALPHAS, resume=resume)
        found[resume] = swept(current(), sweep)
        assert counts == ({"self_attn": attention, "mlp": mlp} if resume else dict.fromkeys(counts, [5] * 4))
    # Not to the bit: products of other sizes add up in another order.
    torch.testing.assert_close(found[True].steered, found[False].steered, atol=1e-5, rtol=0)


def test_a_family_whose_blocks_return_more_is_run_whole(llama: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model whose blocks know of more than the one before: the trial tells."""
    loaded = current().group.rank.store[MODEL]
    block = loaded.model.model.layers[1]
    own = block.forward
    seen = []

    def remembering(hidden: torch.Tensor, **named: Any) -> torch.Tensor:
        seen.append(hidden.mean())
        return own(hidden, **named) + seen[-1]

    monkeypatch.setattr(block, "forward", remembering)  # resuming replaces it, and puts it back
    late = loaded.model.model.layers[3]
    own_late = late.forward
    monkeypatch.setattr(late, "forward", lambda hidden, **named: own_late(hidden, **named) + (seen.pop() if seen else 0))
    sweep = Sweep([[5, 6, 7]], [(34, 35)], "post_ln", unit_directions(128, [3]), ALPHAS)
    assert not swept(current(), sweep).resumed
    assert vars(block)["forward"] is remembering


@pytest.mark.parametrize("ranks", [1, 2], scope="session")
def test_nothing_is_left_behind(checkpoints: Checkpoints, ranks: int) -> None:
    once.load(checkpoints("llama-gqa"), ranks)
    vector = vector_of(unit_directions(128, range(4)))
    before = lens.evaluate(vector, items(), alphas=(-1, 1))
    seen: list[Any] = []

    def stop(event: Any) -> None:
        seen.append(event)
        current().group.interrupt()

    with pytest.raises(KeyboardInterrupt):
        steerability.evaluate(current(), vector, items(), on_event=stop)
    assert seen[0][0] == "evaluating"
    assert seen[0][2] == 4 * 5 * 2
    assert len(seen) == 1

    def trip(event: object) -> None:
        raise RuntimeError("the screen is gone")

    with pytest.raises(RuntimeError, match="screen"):
        steerability.evaluate(current(), vector, items(), on_event=trip)
    assert set(current().group.call(probes.hooks)) == {0}
    assert set(current().group.call(probes.replaced_forwards)) == {0}
    again = lens.evaluate(vector, items(), alphas=(-1, 1))
    np.testing.assert_array_equal(again.propensities, before.propensities)


@pytest.mark.parametrize("ranks", [1, 2], scope="session")
def test_an_interrupt_keeps_what_was_measured(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    """Stopped after the first batch's last layer but one, or at its last: the questions complete by then are a report."""
    monkeypatch.setattr(steerability, "Sweep", functools.partial(Sweep, tokens=1))  # one question a batch
    once.load(checkpoints("llama-gqa"), ranks)
    vector = vector_of(unit_directions(128, range(4)))
    whole = lens.evaluate(vector, items(), alphas=(-1, 1))

    def stopping_at(number: int) -> Any:
        def stop(event: Any) -> None:
            if event[1] == number:
                current().group.interrupt()

        with pytest.raises(lens.Interrupted) as stopped:
            steerability.evaluate(current(), vector, items(), alphas=(-1, 1), on_event=stop)
        return stopped.value.result

    for number, complete in ((4 * 2, 1), (4 * 4 + 2, 2), (4 * 10, 5)):
        report = stopping_at(number)
        assert report.counts["test"] == len(report.questions) == complete
        assert report.counts["unmeasured"] == 5 - complete
        places = [whole.questions.index(question) for question in report.questions]
        np.testing.assert_allclose(report.propensities, whole.propensities[:, :, places], atol=1e-5)
        assert ("were not measured" in report.title) == (complete < 5)
    ablation = lens.ablate_sites(items(STEMS[:2]), items(), sites=("post_ln",), positions=("last",), alphas=(-1, 1))
    events: list[Any] = []

    def stop_late(event: Any) -> None:
        events.append(event)
        if event[1] > event[2] * 0.7:
            current().group.interrupt()

    with pytest.raises(lens.Interrupted) as stopped:
        steerability.ablate_sites(
            current(), items(STEMS[:2]), items(), None, ("post_ln", "resid_post"), ("last",), alphas=(-1, 1), on_event=stop_late
        )
    assert list(stopped.value.result.reports) == [("post_ln", "last")]
    assert stopped.value.result.summary().equals(ablation.summary())


def test_a_site_without_a_direction_does_not_cost_the_others(llama: object) -> None:
    """Both answers end in the same token, which has read nothing yet."""
    asked = {"layers": [0], "positions": ("last",), "alphas": (-1, 1)}
    ablation = lens.ablate_sites(items(STEMS[:2]), items(), sites=("resid_pre", "resid_post"), **asked)
    assert list(ablation.reports) == [("resid_post", "last")]
    assert ablation.without == {("resid_pre", "last"): (0,)}
    assert "no direction: resid_pre at last of layer 0" in ablation.title
    both = lens.ablate_sites(items(STEMS[:2]), items(), sites=("resid_pre",), **{**asked, "layers": [0, 1]})
    assert both.reports["resid_pre", "last"].layers == (1,)
    assert both.without == {("resid_pre", "last"): (0,)}
    with pytest.raises(LensError, match="resid_pre at last: the direction at resid_pre of layer 0 has length 0"):
        lens.ablate_sites(items(STEMS[:2]), items(), sites=("resid_pre",), **asked)


def test_progress_counts_to_its_end(llama: object) -> None:
    events: list[Any] = []
    vector = vector_of(unit_directions(128, [0, 2]))
    steerability.evaluate(current(), vector, items(), alphas=(-1, 1), on_event=events.append)
    assert events[-1] == ("evaluating", 20, 20)
    assert [event[1] for event in events] == sorted(event[1] for event in events)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": (1.0, float("inf"))}, "alpha inf is not a finite number"),
        ({"alphas": (1.0, 1.0)}, "too few for a slope; two different ones would do"),
        ({"layers": [1, 3]}, "planted has no direction of layer 3; it has 1, 2; reuse_layer applies one anywhere"),
        ({"layers": "9"}, "layer 9 is out of range"),
        ({"reuse_layer": 0}, "planted has no direction of layer 0 to reuse; it has 1, 2"),
        ({"reuse_layer": 4}, "layer 4 is out of range"),
        ({"reuse_layer": 1.9}, "reuse_layer 1.9 is not an integer"),
        ({"reuse_layer": "x"}, "reuse_layer 'x' is not an integer"),
        ({"alphas": "-1:1"}, "alphas '-1:1' are not understood; -1.5:1.5:0.5 or -1,0,1 would do"),
        ({"alphas": 1.5}, "alphas 1.5 are not numbers"),
        ({"alphas": ("-1", "1")}, "are not numbers"),
        ({"alphas": (0, 1e38)}, r"α of 'planted' \(1e\+38 .*\) is more than the model can compute with"),
        ({"site": "residual"}, "site 'residual' is not one of"),
        ({"site": "post_ln,mlp_out"}, "site 'post_ln,mlp_out' is not one of"),
        ({"positions": "first"}, "positions 'first' are not understood"),
        ({"random_directions": 0}, "random_directions 0 is too few; 1 or more would do"),
        ({"random_directions": 1.5}, "random_directions 1.5 is not an integer"),
        (
            {"random_directions": 10**10},
            r"10,000,000,000 random directions and .* on a rank, where .* is free; random_directions of at most .* would do",
        ),
        ({"random_directions": 10**30}, "of at most"),
        ({"site": ""}, "site '' is not one of"),
        ({"seed": 1.5}, "seed 1.5 is not an integer"),
        ({"data": [{"positive": "a", "negative": "b"}]}, "can train a vector but not measure it"),
        ({"data": []}, "there are no items"),
        ({"data": "no-such-file.jsonl"}, "is no file"),
        ({"data": [{**items()[0], "answer_matching_behavior": " (C)"}]}, "of 1 items none can be used: 1"),
        (
            {"vector": vector_of(unit_directions(128, [1])) * 1.5},
            r"evaluate takes a SteeringVector \(its α .*\), not SteeringTerm",
        ),
        ({"vector": "m.safetensors"}, "evaluate takes a SteeringVector .*, not str"),
        ({"vector": vector_of(unit_directions(64, [1]))}, "was made for a model .* width 64"),
        ({"vector": vector_of(unit_directions(128, [7]))}, "was made for a model of at least 8 layers"),
    ],
)
def test_bad_input_is_one_clear_line(llama: object, options: dict[str, Any], message: str) -> None:
    given = {"vector": vector_of(unit_directions(128, [1, 2])), "data": items(), **options}
    with pytest.raises(LensError, match=message) as caught:
        lens.evaluate(**given)
    assert "\n" not in str(caught.value)


def test_a_question_longer_than_the_context_is_one_clear_line(llama: object) -> None:
    long = [{**items()[0], "question": asked("look through the lens " * 300, "yes", "no")}]
    with pytest.raises(LensError, match=r"a question has \d+ tokens, more than the model's context of 512"):
        lens.evaluate(vector_of(unit_directions(128, [1])), long)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1.5:1.5:0.5", (-1.5, -1, -0.5, 0, 0.5, 1, 1.5)),
        ("0:1:0.1", tuple(number / 10 for number in range(11))),
        ("1,0,-1", (-1, 0, 1)),
        ("-1:1:0.7", (-1, -0.3, 0.4)),  # never beyond what was asked for: the ends are what is tested
        ("-1.5:1.5:0.4", (-1.5, -1.1, -0.7, -0.3, 0.1, 0.5, 0.9, 1.3)),
    ],
)
def test_alphas_are_understood(text: str, expected: tuple[float, ...]) -> None:
    assert steerability.parse_alphas(text) == expected


@pytest.mark.parametrize("text", ["", "1:2", "1:2:0", "2:1:0.5", "a,b", "0:1:1e-9", "0:inf:1", "nan,1"])
def test_alphas_that_are_not_understood(text: str) -> None:
    with pytest.raises(LensError, match="alpha"):
        steerability.parse_alphas(text)


@pytest.mark.parametrize(
    ("alphas", "words"),
    [
        (b"01", "alphas b'01' are not numbers"),
        ({0: 1}, "alphas {0: 1} are not numbers"),
        ((10**400, 0), "alphas .* are not numbers"),
        (np.array(1.0), "alphas array.* are not numbers"),
        ((1e-300, 0), "alphas .1e-300, 0.0. are too few for a slope"),
        ("a", "alphas 'a' are not understood"),
    ],
)
def test_wrong_alphas(alphas: Any, words: str) -> None:
    with pytest.raises(LensError, match=words):
        steerability.check_alphas(alphas)


def test_alphas_may_be_text() -> None:
    assert steerability.check_alphas("-1:1:0.5") == steerability.check_alphas({-1, 0.5, 1, -0.5, 0})


# -- ablation -------------------------------------------------------------------------------------------------------------


def test_site_ablation_is_the_evaluations_together(llama: object, tmp_path: Path) -> None:
    """Train on two questions, evaluate on the others; balanced over orders, labels differ by nothing where they enter."""
    events: list[Any] = []
    ablation = steerability.ablate_sites(
        current(), items(STEMS[:2]), items(), sites=("post_ln", "resid_pre"), alphas=(-1, 0, 1), on_event=events.append
    )
    done = [event[1] / event[2] for event in events]
    assert done == sorted(done)
    assert done[-1] == 1
    table = ablation.summary()
    assert list(ablation.reports) == [(s, p) for p in ("label", "last") for s in ("post_ln", "resid_pre")]
    assert ablation.without == {("resid_pre", "label"): (0,), ("resid_pre", "last"): (0,)}
    assert [layer for site, at, layer in table.index if (site, at) == ("resid_pre", "label")] == [1, 2, 3]
    vector = vectors.train(current(), items(STEMS[:2]), layers=[2], site="post_ln", position="last")
    assert list(ablation.vectors) == list(ablation.reports)
    assert float(ablation.vectors["post_ln", "last"].directions[2] @ vector.directions[2]) == pytest.approx(1, abs=1e-5)
    alone = lens.evaluate(vector, items(), alphas=(-1, 0, 1)).summary().loc[2]
    row = table.loc[[("post_ln", "last", 2)]].iloc[0]
    assert row["mean_slope"] == pytest.approx(alone["mean_slope"], abs=1e-5)
    assert row["p_uncorrected"] == pytest.approx(alone["p_uncorrected"], rel=1e-3)
    corrected = table.sort_values("p_uncorrected")
    assert corrected["p_value"].iloc[0] == pytest.approx(min(1, corrected["p_uncorrected"].iloc[0] * len(table)))
    assert "no direction: resid_pre at label of layer 0" in repr(ablation)
    assert "resid_pre" in ablation._repr_html_()
    figure = ablation.plot()
    assert [axes.get_title() for axes in figure.axes] == [f"read at position '{p}', 95 %" for p in ("label", "last")]
    again = lens.open_ablation(ablation.save(tmp_path / "ablation.nc"))
    assert (again.without, again.vectors) == (ablation.without, {})
    assert again.summary().equals(table)
    with pytest.raises(LensError, match=r"lens\.open_ablation reads it"):
        lens.open_report(tmp_path / "ablation.nc")
    with pytest.raises(LensError, match=r"lens\.open_report reads it"):
        lens.open_ablation(next(iter(ablation.reports.values())).save(tmp_path / "one.nc"))
    with pytest.raises(LensError, match=r"post_ln at label: .* pairs are texts"):
        lens.ablate_sites([{"positive": "a lens", "negative": "a lamp"}], items(), sites=("post_ln",))


def test_site_ablation_takes_one_position_and_any_numbers(llama: object) -> None:
    given = items(STEMS[:2]), items()
    expected = lens.ablate_sites(*given, layers=1, sites=("post_ln",), positions=("last",), alphas=(-1, 1))
    for positions in ("last", (p for p in ["last"])):
        made = lens.ablate_sites(*given, layers=1, sites="post_ln", positions=positions, alphas=(a for a in (-1, 1)))
        assert made.summary().equals(expected.summary())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": ()}, "no position was named; label, last, mean are there"),
        ({"positions": 5}, "position 5 is not one of label, last, mean"),
        ({"positions": ""}, "position '' is not one of label, last, mean"),
        ({"positions": ["label", None]}, "position None is not one of"),
        ({"sites": ()}, "no site was named"),
        ({"sites": 5}, "site 5 is not one of"),
    ],
)
def test_bad_site_ablation_is_one_clear_line(llama: object, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError, match=message) as caught:
        lens.ablate_sites(items(STEMS[:2]), items(), **options)
    assert "\n" not in str(caught.value)


def test_site_ablation_keeps_what_an_error_comes_after(llama: object, monkeypatch: pytest.MonkeyPatch) -> None:
    train, sites = vectors.train, ("post_ln", "resid_pre", "resid_post")

    def failing(session: Session, pairs: Any, layers: Any, site: str, *rest: Any, **options: Any) -> Any:
        if site == sites[failing_at]:
            raise LensError("the states are no numbers")
        return train(session, pairs, layers, site, *rest, **options)

    monkeypatch.setattr(vectors, "train", failing)
    choices = {"layers": [1, 2], "sites": sites, "positions": ["label"], "alphas": (-1, 1)}
    failing_at = 2
    with pytest.warns(UserWarning, match="resid_post at label: the states are no numbers; what is returned ends before it"):
        ablation = lens.ablate_sites(items(STEMS[:2]), items(), **choices)
    assert list(ablation.reports) == [("post_ln", "label"), ("resid_pre", "label")]
    failing_at = 0
    with pytest.raises(LensError, match=r"^post_ln at label: the states are no numbers$"):
        lens.ablate_sites(items(STEMS[:2]), items(), **choices)


# -- the magic ------------------------------------------------------------------------------------------------------------


def test_the_magic(llama: object, tmp_path: Path) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        shell.run_line_magic("load_ext", "lens_magic")
        current().vectors["planted"] = vector_of(unit_directions(128, [1, 2]))
        file = tmp_path / "questions.jsonl"
        file.write_text("\n".join(json.dumps(item) for item in items()), encoding="utf-8")
        report = shell.run_line_magic("steer", f"eval planted --data {file} --layers 2 --alphas -1:1:0.5 --random 2")
        assert isinstance(report, lens.SteerabilityReport)
        assert (report.vector, report.layers, report.alphas) == ("planted", (2,), (-1, -0.5, 0, 0.5, 1))
        assert len(report.random_slopes) == 2
        shell.user_ns["questions"] = items()
        assert shell.run_line_magic("steer", "eval planted --data questions --alphas -1,1 --unit norm").unit == "norm"
        report = shell.run_line_magic("steer", "eval planted --data questions --alphas -1,1 -o found")
        assert shell.user_ns["found"] is report
        assert "steerability of planted at post_ln: 5 test questions" in report._repr_html_()
        assert shell.user_ns["found"].layers == (1, 2)
        for line, message in {
            "eval nobody --data questions": "there is no vector 'nobody'",
            "eval planted --data questions -o 1x": "--out '1x' is not a variable name",
            "eval planted --data questions --alphas 1": "too few",
            "eval planted": "required: --data",
        }.items():
            with pytest.raises(LensError, match=message):
                shell.run_line_magic("steer", line)
    finally:
        current().vectors.pop("planted", None)
        InteractiveShell.clear_instance()


# -- the demo model ---------------------------------------------------------------------------------------------------------

DEMO_DATA = Path(lens.__file__).parent / "demo" / "data"


def test_the_demo_models_persona_is_steered_in_its_middle() -> None:
    """On questions whose groups and situations neither the direction nor the model has seen."""
    once.load("demo")
    vector = lens.train_vector(DEMO_DATA / "persona-pairs.jsonl", layers=[3], site="resid_post", position="mean")
    report = lens.evaluate(vector, DEMO_DATA / "persona-heldout.jsonl", alphas=(-1.5, 1.5), random_directions=5)
    row = report.summary().loc[3]
    assert report.counts == {"test": 48, "unmeasured": 0, "train": len(vector.training.digests), "excluded": 0, "rejected": 0}
    assert row["p_value"] < 0.01
    assert row["p_against_random"] < 0.01
    assert row["mean_slope"] > 3 * abs(row["random_steepest"])
    assert row["slope_low"] > 0.15
    assert row["anti_steerable"] < 0.1


def test_the_demo_models_mood_turns_its_stories() -> None:
    once.load("demo")
    vector = lens.train_vector(DEMO_DATA / "mood-pairs.jsonl", layers=[3], site="resid_post", position="mean")
    opening = "Once upon a time, Tom walked to the park."
    glad, sad = (lens.generate(opening, 40, steer=vector * alpha).text for alpha in (0.5, -0.5))
    assert any(word in glad for word in ("joyful", "cheerful", "happy", "merry", "smiles"))
    assert any(word in sad for word in ("afraid", "hopeless", "sobs", "gloomy", "sighs"))
    assert not any(word in sad for word in ("joyful", "cheerful", "smiles"))
    assert not any(word in glad for word in ("afraid", "hopeless", "sobs"))


@pytest.mark.parametrize(("positions", "told"), [("-3:", "-3:"), ((None, 1), ":1"), ({0, -2}, [-2, 0]), ("last", "last")])
def test_any_positions_are_recorded(positions: Any, told: Any, llama: object) -> None:
    report = lens.evaluate(vector_of(unit_directions(128, [1])), items(), alphas=(-1, 1), positions=positions)
    assert report.provenance["positions"] == told


def test_positions_no_question_has_are_refused(llama: object) -> None:
    with pytest.raises(LensError, match="would steer nothing"):
        lens.evaluate(vector_of(unit_directions(128, [1])), items(), alphas=(-1, 1), positions="4:")


def test_a_site_stopped_while_learning_costs_none_of_those_before(llama: object, monkeypatch: pytest.MonkeyPatch) -> None:
    train, sites = vectors.train, []

    def stop_at_the_second(*given: Any, **more: Any) -> Any:
        sites.append(given[3])
        if len(sites) == 2:
            raise KeyboardInterrupt
        return train(*given, **more)

    monkeypatch.setattr(vectors, "train", stop_at_the_second)
    with pytest.raises(lens.Interrupted) as stopped:
        lens.ablate_sites(items(STEMS[:2]), items(), sites=("post_ln", "resid_post"), positions=("last",), alphas=(-1, 1))
    assert list(stopped.value.result.reports) == [("post_ln", "last")]
    assert sites == ["post_ln", "resid_post"]


def test_logits_that_are_not_finite_make_no_report(llama: object, monkeypatch: pytest.MonkeyPatch) -> None:
    gain = current().group.rank.store[MODEL].norm.weight
    monkeypatch.setattr(gain, "data", torch.full_like(gain, float("inf")))
    with pytest.raises(LensError, match="the logits of the labels are not finite"):
        lens.evaluate(vector_of(unit_directions(128, [1])), items(), alphas=(-1, 1))


def test_a_model_that_learns_is_measured_and_learns_nothing_by_it(checkpoints: Checkpoints) -> None:
    """As transformers hands models out: with parameters that require gradients."""
    model, tokenizer = models.load_plain(checkpoints("llama-gqa"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    questions, held_out = items()[:3], items()[3:]
    lens.attach(model, tokenizer)
    found = lens.evaluate(lens.train_vector(questions, layers=[1]), held_out, alphas=(-1, 0, 1))
    lens.ablate_sites(questions, held_out, layers=[1], sites=["post_ln"], positions=["label"], alphas=(-1, 1))
    lens.train_tuned_lens(TEXTS, steps=2, tokens_per_step=20)
    lens.run("(A) 4", 2, lens=lens.Basis(torch.eye(4, 128)), track=[2])
    lens.diff(lens.run("(A) 4", 2, ignore_eos=True), steer=SteeringVector.of({1: torch.ones(128)}, site="post_ln") * 2)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    lens.attach(model.requires_grad_(False), tokenizer)
    again = lens.evaluate(lens.train_vector(questions, layers=[1]), held_out, alphas=(-1, 0, 1))
    assert np.array_equal(found.propensities, again.propensities)
