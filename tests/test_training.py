"""Directions against plain transformers, one unpadded text at a time; what training measures and refuses."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
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
from steering_items import STEMS, TEXTS, asked, pairs, questions
from tokenizers import normalizers, processors

import lens_magic as lens
from lens_magic.model.load import MODEL
from lens_magic.model.sites import Window
from lens_magic.session import current
from lens_magic.steer import data, train
from lens_magic.steer.vector import SteeringVector, Training

Checkpoints = Callable[[str], Path]
Sides = list[tuple[torch.Tensor, torch.Tensor]]


CHAT = (
    "{% for m in messages %}<|user|>[{{ m.role }}] {{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[bot]{% endif %}"
)


def reference_sides(model: Any, tokenizer: Any, kind: str, site: str, layer: int, position: str, chat: bool = False) -> Sides:
    """(positive, negative) states of every question in both orders, or of every pair of texts."""

    def encode(text: str, answer: str = "") -> list[int]:
        if chat:  # as CHAT writes it
            text = f"<|user|>[user] {text}<|end|>" + (f"<|user|>[assistant] {answer}" if answer else "[bot]")
        else:
            text += answer
        return list(tokenizer(text)["input_ids"])

    def state(ids: list[int], indices: list[int]) -> torch.Tensor:
        found = ref.states(model, ids, 1, [site], [layer], indices)[site]
        return found[0].double().mean(0)

    def of_answer(text: str, answer: str, other: str) -> torch.Tensor:
        ids, twin, prompt = encode(text, answer), encode(text, other), encode(text)
        label = next(at for at in range(len(ids)) if ids[at] != twin[at])
        begins = next(at for at in range(len(ids)) if at == len(prompt) or ids[at] != prompt[at])
        return state(ids, {"label": [label], "last": [len(ids) - 1], "mean": [*range(begins, len(ids))]}[position])

    def of_text(text: str) -> torch.Tensor:
        ids = encode(text)
        first = len(tokenizer("<|user|>[user] ")["input_ids"]) if chat else 1  # the first token may be a sink
        return state(ids, [len(ids) - 1] if position == "last" else [*range(first, len(ids))])

    if kind == "texts":
        return [(of_text(positive), of_text(negative)) for positive, negative in TEXTS]
    sides = []
    for stem, yes, no in STEMS:
        a, b = asked(stem, yes, no), asked(stem, no, yes)
        sides.append((of_answer(a, " (A)", " (B)"), of_answer(a, " (B)", " (A)")))
        sides.append((of_answer(b, " (B)", " (A)"), of_answer(b, " (A)", " (B)")))
    return sides


@functools.cache
def expected_at(folder: Path, kind: str, site: str, layer: int, position: str) -> torch.Tensor:
    """What plain transformers say, which is the same on any number of ranks."""
    return mean_difference(reference_sides(*once.plain(folder), kind, site, layer, position))


def mean_difference(sides: Sides) -> torch.Tensor:
    return torch.stack([positive - negative for positive, negative in sides]).mean(0)


def require_close(vector: SteeringVector, layer: int, raw: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert vector.norms[layer] == pytest.approx(float(raw.norm()), rel=tolerance)
    assert vector.directions[layer].norm() == pytest.approx(1, abs=1e-6)
    assert float((vector.directions[layer].double() - raw / raw.norm()).abs().max()) < tolerance


# --- against plain transformers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-6heads", "gemma2", "mistral-window"])
@pytest.mark.parametrize("ranks", [1, 2, 3], scope="session")
def test_directions_equal_unpadded_unsharded_ones(name: str, ranks: int, checkpoints: Checkpoints) -> None:
    folder = checkpoints(name)
    once.load(folder, ranks)
    cases = [
        ("questions", "post_ln", "label"),
        ("questions", "resid_post", "last"),
        ("questions", "attn_out", "mean"),
        ("texts", "mlp_out", "last"),
        ("texts", "resid_pre", "mean"),
    ]
    for kind, site, position in cases:
        given = questions() if kind == "questions" else pairs()
        vector = lens.train_vector(given, layers=[1, 2], site=site, position=position)
        assert vector.layers == (1, 2)
        for layer in vector.layers:
            require_close(vector, layer, expected_at(folder, kind, site, layer, position))
    assert set(current().group.call(probes.hooks)) == {0}


def test_texts_longer_than_the_attention_window_beside_short_ones_that_share_a_row() -> None:
    """A batch has one mask for all of its rows, and that of a shared row knows no window."""
    model = models.create("mistral-window")
    model.config.sliding_window = 24
    tokenizer = models.tokenizer_of(311)
    long = "She read the letters through it, and the image grew, as the glass was ground "
    given = [("A lens bends", "A lens shows"), (f"{long}thinner and thinner", f"{long}by hand at first")]
    encoded = [[tokenizer(side)["input_ids"] for side in pair] for pair in given]
    assert max(map(len, encoded[0])) < 24 < min(map(len, encoded[1]))
    lens.attach(model, tokenizer)
    vector = lens.train_vector(
        [{"positive": positive, "negative": negative} for positive, negative in given], [2], "resid_pre", "last"
    )

    def state(ids: list[int]) -> torch.Tensor:
        return ref.states(model, ids, 1, ["resid_pre"], [2], [len(ids) - 1])["resid_pre"][0, 0].double()

    require_close(vector, 2, mean_difference([(state(one), state(other)) for one, other in encoded]))


@pytest.mark.parametrize("position", ["label", "last", "mean"])
@pytest.mark.parametrize("method", ["pca", "logistic"])
def test_other_methods(method: str, position: str, checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-gqa")
    model, tokenizer = once.plain(folder)
    once.load(folder)
    vector = lens.train_vector(questions(), layers=2, site="resid_post", position=position, method=method)
    sides = reference_sides(model, tokenizer, "questions", "resid_post", 2, position)
    differences = np.array([(positive - negative).numpy() for positive, negative in sides])
    if method == "pca":
        of_items = (differences[0::2] + differences[1::2]) / 2  # of both orders of a question
        expected = np.linalg.eigh(of_items.T @ of_items)[1][:, -1]
        expected *= np.sign((differences @ expected).mean())
    else:
        from sklearn.linear_model import LogisticRegression

        states = np.array([side.numpy() for both in sides for side in both])
        expected = LogisticRegression(max_iter=1000).fit(states, [1, 0] * len(sides)).coef_[0]
        expected /= np.linalg.norm(expected)
    direction = vector.directions[2].numpy()
    assert float(np.abs(direction - expected).max()) < 1e-3
    assert float((differences @ direction).mean()) == pytest.approx(vector.norms[2], rel=1e-3)
    assert vector.norms[2] > 0


@pytest.mark.parametrize(
    ("kind", "position"), [*(("questions", p) for p in train.POSITIONS), ("texts", "last"), ("texts", "mean")]
)
def test_in_a_chat_questions_are_the_users_and_answers_the_assistants(
    kind: str, position: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = checkpoints("llama-gqa")
    once.load(folder)
    given = questions() if kind == "questions" else pairs()
    with pytest.raises(lens.LensError, match=r"this model has no chat template; leave --chat out$"):
        lens.train_vector(given, layers=[2], position=position, chat=True)
    monkeypatch.setattr(current().require_model().tokenizer, "chat_template", CHAT)
    vector = lens.train_vector(given, layers=[2], site="resid_post", position=position, chat=True)
    sides = reference_sides(*once.plain(folder), kind, "resid_post", 2, position, chat=True)
    require_close(vector, 2, mean_difference(sides))
    assert "in the chat template" in vector.summary()
    assert lens.load_vector(vector.save(tmp_path / "v.safetensors")).training == vector.training
    assert vector.training.chat
    assert not lens.train_vector(given, layers=[2], position=position).training.chat


def test_a_vector_is_named(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    assert lens.train_vector(pairs(), layers=[1], position="last", name="warm").name == "warm"
    for wrong in ("train", "two words", 5):
        with pytest.raises(lens.LensError, match="cannot name a vector"):
            lens.train_vector(pairs(), layers=[1], position="last", name=wrong)  # type: ignore[arg-type]


def test_both_orders_are_used(checkpoints: Checkpoints) -> None:
    """Swapping every item changes nothing, and what only tells A from B cancels."""
    once.load(checkpoints("llama-gqa"))
    swapped = []
    for item in data.read(questions()).questions:
        other = item.swapped()
        swapped.append(
            {"question": other.text, "answer_matching_behavior": other.matching, "answer_not_matching_behavior": other.other}
        )
    one, two = (lens.train_vector(given, layers=[1]) for given in (questions(), swapped))
    assert float(one.directions[1] @ two.directions[1]) > 1 - 1e-5
    assert one.norms[1] == pytest.approx(two.norms[1], rel=1e-4)


def test_what_the_tokenizer_adds_is_no_part_of_the_answer(checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-gqa")
    model, tokenizer = models.load_plain(folder)
    begin = [(models.OTHER, tokenizer.convert_tokens_to_ids(models.OTHER)), (models.END, tokenizer.eos_token_id)]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{models.OTHER} $A {models.END}", special_tokens=begin
    )
    lens.attach(model, tokenizer)
    vector = lens.train_vector(pairs(), layers=[1], site="resid_post", position="mean")
    last = lens.train_vector(pairs(), layers=[1], site="resid_post", position="last")
    differences, at_end = [], []
    for texts in TEXTS:
        means, ends = [], []
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            assert (ids[0], ids[-1]) == (begin[0][1], begin[1][1])
            states = ref.states(model, ids, 1, ["resid_post"], [1], [*range(1, len(ids) - 1)])["resid_post"][0]
            means.append(states.double().mean(0))
            ends.append(states[-1].double())
        differences.append(means[0] - means[1])
        at_end.append(ends[0] - ends[1])
    require_close(vector, 1, torch.stack(differences).mean(0))
    require_close(last, 1, torch.stack(at_end).mean(0))


def test_special_tokens_in_a_text_are_text(checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-gqa")
    model, tokenizer = models.load_plain(folder)
    once.load(folder)
    given = [{side: f"{text} {models.END} again" for side, text in each.items()} for each in pairs()]
    differences = []
    for each in given:
        ids = [tokenizer(each[side], split_special_tokens=True)["input_ids"] for side in ("positive", "negative")]
        assert tokenizer.eos_token_id not in ids[0] + ids[1]
        sides = [ref.states(model, one, 1, ["resid_post"], [1], [*range(1, len(one))])["resid_post"][0] for one in ids]
        differences.append(sides[0].double().mean(0) - sides[1].double().mean(0))
    vector = lens.train_vector(given, layers=[1], site="resid_post", position="mean")
    require_close(vector, 1, torch.stack(differences).mean(0))


def test_a_text_of_one_token_has_that_alone(checkpoints: Checkpoints) -> None:
    model, tokenizer = models.load_plain(checkpoints("llama-gqa"))
    once.load(checkpoints("llama-gqa"))
    (one,), longer = tokenizer("A")["input_ids"], tokenizer("A lamp")["input_ids"]
    with pytest.warns(UserWarning, match=r"^1 text of one token, which begins the sequence: .*; longer ones would do$"):
        vector = lens.train_vector([{"positive": "A", "negative": "A lamp"}], layers=[1], site="resid_post", position="mean")
    sides = [
        ref.states(model, ids, 1, ["resid_post"], [1], [*at])["resid_post"][0].double().mean(0)
        for ids, at in (([one], range(1)), (longer, range(1, len(longer))))
    ]
    require_close(vector, 1, sides[0] - sides[1])


def test_a_text_as_long_as_the_context_is_used_and_a_longer_one_is_not(checkpoints: Checkpoints) -> None:
    _, tokenizer = once.plain(checkpoints("llama-gqa"))
    items = data.read([{"positive": "A lamp", "negative": "A lens bends light"}])
    longest = len(tokenizer("A lens bends light")["input_ids"])
    examples, rejected, _ = train.examples_of(tokenizer, items, "last", longest)
    assert (len(examples), rejected) == (1, {})
    examples, rejected, _ = train.examples_of(tokenizer, items, "last", longest - 1)
    assert (examples, rejected) == ([], {f"longer than the model's context of {longest - 1}": 1})


def test_sides_that_are_tokenised_alike_are_left_out(checkpoints: Checkpoints) -> None:
    model, tokenizer = models.load_plain(checkpoints("llama-gqa"))
    tokenizer._tokenizer.normalizer = normalizers.Lowercase()
    lens.attach(model, tokenizer)
    vector = lens.train_vector([*pairs(), {"positive": "A LAMP", "negative": "a lamp"}], layers=[1], position="last")
    assert vector.training.rejected == {"the same tokens on both sides": 1}
    assert (vector.training.texts, len(vector.training.digests)) == (4, 4)


@pytest.mark.parametrize("position", ["last", "mean"])
def test_a_text_of_no_tokens_is_left_out(position: str, checkpoints: Checkpoints) -> None:
    """Alone there is nothing to learn from; beside a longer one it would be padding that is read."""
    model, tokenizer = models.load_plain(checkpoints("llama-gqa"))
    tokenizer._tokenizer.normalizer = normalizers.Strip()
    lens.attach(model, tokenizer)
    empty = [{"positive": " ", "negative": "A lamp"}]
    vector = lens.train_vector([*pairs(), *empty], layers=[1], position=position)
    assert vector.training.rejected == {"no token to read": 1}
    assert vector.norms == lens.train_vector(pairs(), layers=[1], position=position).norms
    with pytest.raises(lens.LensError, match=r"of 1 items none can be used: 1 \(no token to read\)"):
        lens.train_vector(empty, layers=[1], position=position)


@pytest.mark.parametrize("position", ["label", "last", "mean"])
def test_halves_of_characters_are_left_out(position: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """As JSON writes them; an evaluation leaves them out, too."""
    once.load(checkpoints("llama-gqa"))
    broken = [{**questions()[0], "question": asked("Is it \ud83d?", "near", "far")}]
    broken += [{"positive": "A lens \ud83d", "negative": "A lamp"}] if position != "label" else []
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, [*broken, *questions()])))
    vector = lens.train_vector(tmp_path / "pairs.jsonl", layers=[1], position=position)
    assert vector.training.rejected == {"not valid Unicode": len(broken)}
    assert vector.training.questions == len(questions())
    if position == "label":
        report = lens.evaluate(replace(vector, training=Training()), tmp_path / "pairs.jsonl", alphas=(-1, 1))
        assert (report.counts["test"], report.counts["rejected"]) == (len(questions()), 1)


def test_bfloat16(checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-bf16")
    model, tokenizer = once.plain(folder)
    once.load(folder)
    vector = lens.train_vector(pairs(), layers=[1], site="resid_post", position="last")
    expected = mean_difference(reference_sides(model, tokenizer, "texts", "resid_post", 1, "last"))
    assert float(vector.directions[1].double() @ (expected / expected.norm())) > 0.999
    assert vector.norms[1] == pytest.approx(float(expected.norm()), rel=0.05)


def test_states_of_16_bits_are_averaged_in_32() -> None:
    states = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    reader = train._Reader("resid_post", [0], 1, 1)
    reader._spans = [(0, 1, torch.arange(3, 40))]
    reader.visits()["resid_post", 0](states, Window())
    torch.testing.assert_close(reader.states[0][0], states[1, 3:].float().mean(0), rtol=1e-6, atol=1e-7)


def test_rounding_in_16_bits_is_no_direction(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-bf16"))
    swapped = [{"positive": negative, "negative": positive} for positive, negative in TEXTS]
    with pytest.raises(lens.LensError, match="the two sides are the same, or cancel"):
        lens.train_vector([*pairs(), *swapped], layers=[0], site="post_ln", position="mean")


def test_padding_and_batches_change_nothing(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    once.load(checkpoints("llama-gqa"))
    together = lens.train_vector(questions(), layers=None, site="resid_post", position="mean")
    monkeypatch.setattr(train, "_TEXTS_A_BATCH", 2)
    apart = lens.train_vector(questions(), layers=None, site="resid_post", position="mean")
    for layer in together.layers:
        assert float((together.directions[layer] - apart.directions[layer]).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("kind", "position", "rows"),
    # Two questions in two orders; two texts that begin alike and two that do not.
    [("questions", "label", 4), ("questions", "mean", 4), ("texts", "last", 3), ("texts", "mean", 3)],
)
def test_what_the_sides_of_an_example_share_is_read_once(
    kind: str, position: str, rows: int, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    once.load(checkpoints("llama-6heads"))
    sizes: list[int] = []
    read = train.read_batch

    def counting(loaded: Any, batch: Any, visitors: Any) -> torch.Tensor:
        sizes.append(batch.size)
        return read(loaded, batch, visitors)

    monkeypatch.setattr(train, "read_batch", counting)
    texts = [{"positive": "The lamp is bright", "negative": "The lamp is far"}, {"positive": "A grain", "negative": "Lamps"}]
    lens.train_vector(questions()[:2] if kind == "questions" else texts, layers=[0], position=position)
    assert sum(sizes) == rows


@pytest.mark.parametrize(("site", "layer"), [("post_ln", 1), ("resid_post", 0), ("resid_pre", 2)])
def test_nothing_is_computed_after_the_last_layer_read(site: str, layer: int, checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-gqa")
    model, tokenizer = models.load_plain(folder)
    ran = []
    for number, block in enumerate(model.model.layers):
        block.self_attn.register_forward_hook(lambda *_, number=number: ran.append(number))
    lens.attach(model, tokenizer)
    lens.train_vector(questions(), layers=[layer], site=site)
    assert max(ran) == layer - (site == "resid_pre")
    assert len(lens.generate("It is", 2, ignore_eos=True).output_ids) == 2


# --- quality ---------------------------------------------------------------------------------------------------------


def planted(strength: float, examples: int = 200, width: int = 12) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """Noise, with the positive sides moved along one direction."""
    random = torch.Generator().manual_seed(7)
    states = torch.randn(2 * examples, width, generator=random)
    direction = torch.nn.functional.normalize(torch.randn(width, generator=random), dim=0)
    states[0::2] += strength * direction
    return states, np.arange(examples) // 2, direction


@pytest.mark.parametrize("method", train.METHODS)
def test_quality_tells_a_direction_from_noise(method: str) -> None:
    from scipy.stats import norm

    states, items, direction = planted(2.0)
    found = train.learn_layer(states, items, method)
    assert float(found.direction @ direction) > 0.9
    assert found.norm == pytest.approx(2, rel=0.1)
    assert found.quality.halves > 0.8
    assert found.quality.auc == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.05)  # two unit normals, 2 apart
    assert found.quality.pairs == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.06)
    noise = train.learn_layer(*planted(0.0)[:2], method)
    assert abs(noise.quality.halves) < 0.6
    assert noise.quality.auc == pytest.approx(0.5, abs=0.1)
    assert noise.quality.pairs == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("method", train.METHODS)
def test_the_letter_is_not_learnt(method: str) -> None:
    """It differs more between the two answers than their content does, one way in each order of a question."""
    states, items, direction = planted(2.0)
    letter = torch.nn.functional.normalize(torch.randn(12, generator=torch.Generator().manual_seed(8)), dim=0)
    letter -= letter @ direction * direction
    side = torch.tensor([4.0, -4.0]).repeat(100)[:, None] * letter  # of each example, by turns A and B
    states[0::2] += side
    states[1::2] -= side
    found = train.learn_layer(states, items, method)
    assert float(found.direction @ direction) > 0.9
    assert found.norm == pytest.approx(2, rel=0.1)
    assert found.quality.halves > 0.8


@pytest.mark.parametrize("method", train.METHODS)
def test_the_letter_is_not_measured_where_texts_are_among_the_questions(method: str) -> None:
    from scipy.stats import norm

    states, _, direction = planted(2.0, examples=300)
    items = np.repeat(np.arange(200), [1, 2] * 100)  # by turns a text and a question in both orders
    letter = torch.nn.functional.normalize(torch.randn(12, generator=torch.Generator().manual_seed(8)), dim=0)
    letter -= letter @ direction * direction
    side = torch.tensor([0.0, 4.0, -4.0]).repeat(100)[:, None] * letter
    states[0::2] += side
    states[1::2] -= side
    quality = train.learn_layer(states, items, method).quality
    assert quality.auc == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.05)
    assert quality.pairs == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.06)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_items_are_measured_too(count: int) -> None:
    quality = train.learn_layer(*planted(50.0, 2 * count)[:2], "mean_diff").quality
    assert (quality.auc, quality.pairs) == (1, 1)
    assert quality.halves > 0.9


def test_what_is_measured_twice_is_the_same() -> None:
    states, items, _ = planted(0.5)
    one, again = (train.learn_layer(states, items, "mean_diff").quality for _ in range(2))
    assert one == again


@pytest.mark.parametrize("odd", [-1.0, 0.0])
def test_of_six_pairs_one_in_the_wrong_order_or_none_leaves_five(odd: float) -> None:
    """Though one of the five parts held out by turns has two pairs."""
    states = torch.zeros(12, 3)
    states[0::2, 0] = torch.tensor([10.0] * 5 + [odd])
    assert train.learn_layer(states, np.arange(6), "mean_diff").quality.pairs == pytest.approx(5 / 6)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_what_is_rounding_error_depends_on_the_states_size(size: float) -> None:
    states, items, direction = planted(0.0)
    states[1::2] = states[0::2]
    found = train.learn_layer(states * size, items, "mean_diff")
    assert (found.nothing, found.norm, found.direction.abs().max()) == (True, 0, 0)
    scale = float(states.norm(dim=-1).mean())
    for length, nothing in ((2e-4, False), (5e-5, True)):
        moved = states.double()
        moved[0::2] += length * scale * direction
        assert train.learn_layer(moved * size, items, "mean_diff", 1e-4).nothing is nothing


def test_a_direction_points_to_the_positive_side_of_most_examples() -> None:
    """Also where more items than examples lie on the other side: a question is two examples, a pair of texts is one."""
    towards = torch.tensor([1.0] * 8 + [-1.0] * 5)  # four questions, five texts
    states = torch.zeros(26, 3)
    states[0::2, 0] = towards
    items = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8])
    found = train.learn_layer(states, items, "pca")
    assert found.direction.tolist() == [1, 0, 0]
    assert found.norm == pytest.approx(3 / 13)


def test_halves_that_point_apart_are_told(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    (one, other), _ = TEXTS[:2]
    given = [{"positive": one, "negative": other}, {"positive": other, "negative": f"{one} that leaves"}]
    with pytest.warns(UserWarning, match=r"point apart at resid_post of layer 1 \(-0\.\d+\), layer 2 \(-0\.") as caught:
        lens.train_vector(given, layers=[1, 2], site="resid_post", position="last")
    assert "\n" not in str(caught[0].message)


def test_auc_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(3)
    positive, negative = random.integers(0, 6, 40) / 2 + 1, random.integers(0, 6, 30) / 2
    expected = roc_auc_score([1] * 40 + [0] * 30, np.concatenate([positive, negative]))
    assert train._auc(positive, negative) == pytest.approx(expected)


def test_the_orders_of_a_question_are_never_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were one order in training and the other held out, the question itself would be known."""
    states, _, _ = planted(0.0, examples=40)
    items = np.repeat(np.arange(20), 2)
    # Each item has a direction of its own, which both its orders share.
    own = torch.randn(20, 12, generator=torch.Generator().manual_seed(1)) * 5
    states[0::2] += own[torch.from_numpy(items)]
    apart = train.learn_layer(states, np.arange(40), "mean_diff").quality
    together = train.learn_layer(states, items, "mean_diff").quality
    assert together.auc < apart.auc


def test_in_the_demo_model_labels_know_their_options_from_layer_2_on() -> None:
    from lens_magic import demo

    once.load("demo")
    folder = demo.path().parent / "data"
    label = lens.train_vector(folder / "persona-train.jsonl", layers="0-3")
    assert label.training.questions == 80
    assert [label.quality[layer].pairs > 0.9 for layer in label.layers] == [False, False, True, True]
    assert [label.quality[layer].halves > 0.9 for layer in label.layers] == [False, False, True, True]
    mood = lens.train_vector(folder / "mood-pairs.jsonl", layers=[3], site="resid_post", position="mean")
    assert mood.quality[3].auc > 0.99
    # The gloomy word where the cheerful one stood: the direction does something.
    start = "One morning, Adam went to the river with a bird. It was a"
    up, down = (lens.generate(start, 8, steer=mood * alpha).text for alpha in (1.0, -1.0))
    assert up != down


def test_one_pair_has_no_measure(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    vector = lens.train_vector(pairs()[:1], layers=[1], position="last")
    assert vector.quality[1].auc is None
    assert "–" in repr(vector)


# --- what training refuses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "choices", "words"),
    [
        (questions, {"site": "nowhere"}, "site 'nowhere' is not one of"),
        (questions, {"position": "first"}, "position 'first' is not one of label, last, mean"),
        (questions, {"method": "svm"}, "method 'svm' is not one of mean_diff, pca, logistic"),
        (questions, {"layers": [4]}, "layer 4 is out of range"),
        (list, {}, "there are no items"),
        (pairs, {}, "are texts, which have no label"),
        (lambda: [{"positive": "x" * 3000, "negative": "y"}], {"position": "last"}, "longer than the model's context of 512"),
        (questions, {"site": "resid_pre", "position": "last", "layers": "0-1"}, "resid_pre of layer 0 has length .* the same"),
        (
            lambda: [*pairs(), *({"positive": b, "negative": a} for a, b in TEXTS)],
            {"position": "last"},
            "the two sides are the same, or cancel",
        ),
    ],
)
def test_bad_training_is_one_clear_line(given: Any, choices: dict[str, Any], words: str, checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    with pytest.raises(lens.LensError, match=words) as caught:
        lens.train_vector(given(), **{"layers": [1], **choices})
    assert "\n" not in str(caught.value)


@pytest.mark.ranks(2)
def test_an_interrupt_stops_training_on_all_ranks(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_magic import vectors

    once.load(checkpoints("llama-gqa"), 2)
    session = current()
    # More texts than go into one batch.
    many = [{"positive": f"She read it {number}", "negative": f"A lamp {number}"} for number in range(80)]
    for phase in ("reading", "learning"):
        seen: list[tuple[Any, ...]] = []

        def stop(event: tuple[Any, ...], phase: str = phase, seen: list[tuple[Any, ...]] = seen) -> None:
            seen.append(event)
            if event[0] == phase:
                session.group.interrupt()

        with pytest.raises(KeyboardInterrupt):
            vectors.train(session, many, "0-3", position="last", on_event=stop)
        assert [event[0] for event in seen].count(phase) == 1
    assert set(session.group.call(probes.hooks)) == {0}
    assert lens.train_vector(many, layers=[1], position="last").training.texts == 80


@pytest.mark.parametrize("method", ["mean_diff", "logistic"])
def test_an_interrupt_after_the_last_layer_is_heard(
    method: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_magic import vectors
    from lens_magic.steer import train

    once.load(checkpoints("llama-gqa"))
    learn_layer = train.learn_layer

    def late(*given: Any) -> Any:
        current().group.interrupt()
        return learn_layer(*given)

    monkeypatch.setattr(train, "learn_layer", late)
    with pytest.raises(KeyboardInterrupt):
        vectors.train(current(), pairs(), [1], position="last", method=method)


def test_states_that_are_not_finite_are_said_to_be(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    lens.load(str(checkpoints("llama-gqa")), ranks=1)
    weight = current().group.rank.store[MODEL].model.model.layers[0].mlp.down_proj.weight
    monkeypatch.setattr(weight, "data", torch.full_like(weight, 1e38))
    for method in ("mean_diff", "pca", "logistic"):
        with pytest.raises(lens.LensError, match="states at resid_post of layer 1 are not finite in float32; another dtype"):
            lens.train_vector(pairs(), layers=[1], site="resid_post", position="last", method=method)


def test_states_beyond_the_largest_number_are_said_not_to_be_finite(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens.load(str(checkpoints("llama-gqa")), ranks=1)
    weight = current().group.rank.store[MODEL].model.model.embed_tokens.weight
    monkeypatch.setattr(weight, "data", torch.full_like(weight, torch.inf))
    with pytest.raises(lens.LensError, match="states at resid_pre of layer 0 are not finite in float32"):
        lens.train_vector(pairs(), layers=[0], site="resid_pre", position="last")
