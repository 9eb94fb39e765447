"""Steering against plain transformers with hooks: sites, operators, positions and steps, cached and not, on 1 to 4 ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import models
import numpy as np
import once
import probes
import pytest
import reference as ref
import torch
from steered import Change, steered
from steering_items import questions

import lens_magic as lens
from lens_magic.errors import LensError
from lens_magic.model.sites import Window
from lens_magic.session import current
from lens_magic.steer import intervene
from lens_magic.steer.spans import parse_positions, parse_span, tabulate
from lens_magic.steer.term import MadeFor, SteeringTerm
from lens_magic.steer.vector import Origin, SteeringVector

Checkpoints = Callable[[str], Path]
TOKENS = 10
ALPHA = 3.0


def direction(width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)


def logits_of(run: Any) -> np.ndarray:
    """The model's own logits at every position, `[position, vocabulary]`, from a run with k as large as the vocabulary."""
    data = run.to_xarray().sel(site="resid_post").isel(layer=-1)
    order = np.argsort(data["token_id"].values, axis=-1)
    return np.take_along_axis(data["logit"].values, order, -1)


def steered_run(model: Any, steer: Any, force: list[int] | None = None) -> Any:
    return lens.run(
        models.PROMPT,
        TOKENS,
        top_k=model.config.vocab_size,
        layers=-1,
        capture="resid_post",
        prompt_tokens=True,
        ignore_eos=True,
        steer=steer,
        force=force,
    )


def check(name: str, folder: Path, ranks: int, terms: Any, changes: list[Change]) -> None:
    """Steered generation and steered teacher forcing both give the reference's logits at every position."""
    model, _ = once.plain(folder)
    once.load(folder, ranks)
    for run in (made := steered_run(model, terms), steered_run(model, terms, made.output_ids)):
        ids, prompt = run.prompt_ids + run.output_ids, len(run.prompt_ids)
        with steered(model, changes, prompt):
            expected = ref.output_logits(model, ids)[: len(ids) - 1].numpy()
        np.testing.assert_allclose(logits_of(run), expected, atol=1e-4 * max(1, np.abs(expected).max()), err_msg=name)
        greedy = expected[prompt - 1 :].argmax(-1)
        assert run.output_ids == greedy.tolist()
    for change in changes:
        limits = change.clip is not None and change.clip < 1
        assert {p > 0 for p in change.limited} == ({False, True} if limits else set()), "clips the prompt and what follows"
    assert set(current().group.call(probes.hooks)) == {0}


def width_of(folder: Path) -> int:
    model, _ = once.plain(folder)
    return int(model.config.hidden_size)


@pytest.mark.parametrize("operator", ["add", "ablate", "set"])
@pytest.mark.parametrize("site", ref.SITES)
def test_every_site_and_operator(site: str, operator: str, ranks: int, checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-6heads")
    v = direction(width_of(folder))
    term = SteeringTerm("test", {1: v}, site, ALPHA, operator=operator)
    check(f"{site} {operator}", folder, ranks, term, [Change(site, 1, v, lambda p: ALPHA, operator)])


PLACES: dict[str, tuple[dict[str, Any], Callable[[int], float | None]]] = {
    "prompt": ({"positions": "prompt"}, lambda p: ALPHA if p < 0 else None),
    "generated": ({"positions": "generated"}, lambda p: ALPHA if p >= 0 else None),
    "last": ({"positions": "last"}, lambda p: ALPHA if p == 0 else None),
    "a span across the border": ({"positions": (-3, 4)}, lambda p: ALPHA if -3 <= p < 4 else None),
    # A mask by index steers no cached step; one that counts from the sequence's start is off by the prompt.
    "from a position on": ({"positions": (4, None)}, lambda p: ALPHA if p >= 4 else None),
    "a set": ({"positions": frozenset({-2, 0, 5})}, lambda p: ALPHA if p in (-2, 0, 5) else None),
    "steps": ({"steps": (2, 5)}, lambda p: ALPHA if 2 <= max(p, 0) < 5 else None),
    "decay": ({"decay": 2.0}, lambda p: ALPHA * 0.5 ** (max(p, 0) / 2)),
    "schedule": ({"schedule": (1.0, 0.0, 2.0)}, lambda p: ALPHA * (1.0, 0.0, 2.0)[min(max(p, 0), 2)]),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_and_when(place: str, ranks: int, checkpoints: Checkpoints) -> None:
    folder = checkpoints("qwen3-gqa")
    v = direction(width_of(folder))
    options, amount = PLACES[place]
    check(place, folder, ranks, SteeringTerm("test", {1: v}, "post_ln", ALPHA, **options), [Change("post_ln", 1, v, amount)])


@pytest.mark.parametrize("site", ref.SITES)
def test_every_site_and_operator_at_every_place(site: str, ranks: int, checkpoints: Checkpoints) -> None:
    """With the prompt read in pieces, too. On several ranks each place has one of the operators, another one at each site."""
    folder = checkpoints("llama-6heads")
    v = direction(width_of(folder))
    once.load(folder, ranks)
    current().group.call(probes.set_prefill_columns, 3)
    try:
        for number, (place, (options, amount)) in enumerate(PLACES.items()):
            operators = [one for one in ("add", "ablate", "set") if one != "ablate" or place not in ("decay", "schedule")]
            turn = (number + ref.SITES.index(site)) % len(operators)
            for operator in operators if ranks == 1 else operators[turn : turn + 1]:
                term = SteeringTerm("test", {1: v}, site, ALPHA, operator=operator, **options)
                check(f"{site} {operator} {place}", folder, ranks, term, [Change(site, 1, v, amount, operator)])
    finally:
        current().group.call(probes.set_prefill_columns, 2048)


def test_long_prompts_in_chunks(ranks: int, checkpoints: Checkpoints) -> None:
    """Positions stay right where the prompt is read in pieces."""
    folder = checkpoints("gemma2")
    v = direction(width_of(folder))
    once.load(folder, ranks)
    current().group.call(probes.set_prefill_columns, 3)
    try:
        term = SteeringTerm("test", {2: v}, "resid_post", ALPHA, positions=(-4, 3))
        check("chunks", folder, ranks, term, [Change("resid_post", 2, v, lambda p: ALPHA if -4 <= p < 3 else None)])
    finally:
        current().group.call(probes.set_prefill_columns, 2048)


@pytest.mark.parametrize("options", [{"clip": 0.01}, {"clip": 1e39}, {"keep_norm": True}, {"clip": 0.02, "keep_norm": True}])
def test_clip_and_norm(options: dict[str, Any], checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-bias")
    v = direction(width_of(folder))
    for operator in ("add", "set"):
        term = SteeringTerm("test", {0: v}, "mlp_out", ALPHA, operator=operator, **options)
        check("clip", folder, 1, term, [Change("mlp_out", 0, v, lambda p: ALPHA, operator, **options)])


def test_several_terms_in_order(ranks: int, checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-1kv")
    width = width_of(folder)
    u, v = direction(width, 1), direction(width, 2)
    terms = (
        SteeringTerm("u", {0: u, 2: u}, "resid_post", 2.0, scale={2: -0.5})
        + SteeringTerm("v", {2: v}, "resid_post", -4.0, positions="generated")
        + SteeringTerm("u", {2: u}, "resid_post", operator="ablate", steps=(3, None))
    )
    changes = [
        Change("resid_post", 0, u, lambda p: 2.0),
        Change("resid_post", 2, u, lambda p: -1.0),
        Change("resid_post", 2, v, lambda p: -4.0 if p >= 0 else None),
        Change("resid_post", 2, u, lambda p: 0.0 if p >= 3 else None, "ablate"),
    ]
    check("terms", folder, ranks, terms, changes)


@pytest.mark.parametrize("ahead", [1, 3, 64])
def test_values_that_change_at_every_token(ahead: int, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far ahead they are worked out: additions plain and clipped, of either sign, before and after an ablation."""
    monkeypatch.setattr(intervene, "_AHEAD", ahead)
    folder = checkpoints("llama-1kv")
    width = width_of(folder)
    t, u, v = (direction(width, seed) for seed in (1, 2, 3))
    swing = (1.0, -2.0, 0.0, 0.0, 3.0, -1.0, -1.0, 0.5)

    def swinging(p: int) -> float:
        return ALPHA * swing[min(max(p, 0), len(swing) - 1)]

    terms = (
        SteeringTerm("plain", {1: t, 2: v}, "resid_post", ALPHA, schedule=swing, scale={2: -0.5}),
        SteeringTerm("plain too", {1: u}, "resid_post", ALPHA, decay=2.0),
        SteeringTerm("taken away", {1: v}, "resid_post", operator="ablate", positions=(-2, 6)),
        SteeringTerm("clipped", {1: u, 2: t}, "resid_post", ALPHA, schedule=swing, clip=0.02, scale={2: -2.0}),
        SteeringTerm("plain again", {1: v}, "resid_post", -ALPHA, positions=frozenset({0, 2, 3, 7})),
    )
    changes = [
        Change("resid_post", 1, t, swinging),
        Change("resid_post", 1, u, lambda p: ALPHA * 0.5 ** (max(p, 0) / 2)),
        Change("resid_post", 1, v, lambda p: 0.0 if -2 <= p < 6 else None, "ablate"),
        Change("resid_post", 1, u, swinging, clip=0.02),
        Change("resid_post", 1, v, lambda p: -ALPHA if p in (0, 2, 3, 7) else None),
        Change("resid_post", 2, v, lambda p: -0.5 * swinging(p)),
        Change("resid_post", 2, t, lambda p: -2.0 * swinging(p), clip=0.02),
    ]
    check("changing", folder, 1, terms, changes)


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_of_16_bits_are_changed_in_float32_and_rounded_once(length: int, dtype: torch.dtype) -> None:
    """Of forty changes each is less than half a digit of the states; their lengths limit another."""
    v, h = direction(16), torch.full((1, length, 16), 3.0).to(dtype)
    small = 0.4 * float(torch.finfo(dtype).eps) / float(v.abs().max())
    terms = [SteeringTerm("small", {0: v}, "resid_post", small)] * 40 + [
        SteeringTerm("limited", {0: v}, "resid_post", 50, clip=0.3)
    ]
    loaded = cast(Any, SimpleNamespace(device=torch.device("cpu")))
    steering, window = intervene.Steering(loaded, terms), Window(start=4, length=length)
    steering.prepare(window)
    changed = steering.visits()["resid_post", 0](h, window)
    summed = h.double() + 40 * small * v
    expected = summed + 0.3 * summed.norm(dim=-1, keepdim=True) * v
    assert changed.dtype == dtype
    torch.testing.assert_close(changed.double(), expected, rtol=float(torch.finfo(dtype).eps) / 2 * 1.001, atol=1e-6)


def test_another_alpha_for_each_sequence_of_a_batch(ranks: int, checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-gqa")
    once.load(folder, ranks)
    v = direction(width_of(folder))
    alphas = (-3.0, 0.0, 3.0)
    together = lens.generate(
        [models.PROMPT] * 3, TOKENS, ignore_eos=True, steer=SteeringTerm("test", {1: v}, "post_ln", alphas)
    )
    alone = [
        lens.generate(models.PROMPT, TOKENS, ignore_eos=True, steer=SteeringTerm("test", {1: v}, "post_ln", alpha))
        for alpha in alphas
    ]
    assert [one.output_ids for one in together] == [one.output_ids for one in alone]
    assert together[1].output_ids == lens.generate(models.PROMPT, TOKENS, ignore_eos=True).output_ids
    some = SteeringTerm("test", {1: v}, "post_ln", 3.0, operator="set", sequences=(2,))
    mixed = lens.generate([models.PROMPT] * 3, TOKENS, ignore_eos=True, steer=some)
    assert mixed[0].output_ids == mixed[1].output_ids == together[1].output_ids
    only = SteeringTerm("test", {1: v}, "post_ln", 3.0, operator="set")
    assert mixed[2].output_ids == lens.generate(models.PROMPT, TOKENS, ignore_eos=True, steer=only).output_ids


def test_a_term_for_some_prompts_acts_on_these_or_is_refused(checkpoints: Checkpoints) -> None:
    """It is neither dropped, nor applied to others."""
    once.load(folder := checkpoints("llama-gqa"))
    term = SteeringTerm("test", {1: direction(width_of(folder))}, "post_ln", 3.0)
    run = lens.run(models.PROMPT, 2, layers=-1, ignore_eos=True)
    one, several = models.PROMPT, [models.PROMPT, "A lens"]
    for given in (one, several):
        for ask in (lens.run, lens.generate):
            with pytest.raises(LensError, match=r"'test' is for sequence 5 of a batch; here it is of (one prompt|2 prompts)"):
                ask(given, 2, steer=term.for_sequences(0, 5))
    for compare in (lambda steer: lens.compare(one, steer, 2), lambda steer: lens.diff(run, steer)):
        with pytest.raises(LensError, match="'test' is for sequence 1 of a batch; here it is of one prompt, 0"):
            compare(term.for_sequences(1))
    early = replace(term, positions=(-20, -10))  # of which the second prompt has none
    told = [made.options["steering"] for made in lens.run(several, 2, layers=-1, steer=early.for_sequences(0))]
    assert told == [[str(early)], []]
    with pytest.raises(LensError, match=r"would steer nothing: .* p = -\d to 1, and generated tokens 0 to 1"):
        lens.run(several, 2, layers=-1, steer=early.for_sequences(1))
    whole, first = (lens.diff(run, steer) for steer in (term, term.for_sequences(0)))
    assert np.array_equal(whole.kl, first.kl)
    assert lens.compare(one, term.for_sequences(0), 2).steering == (str(term),) == tuple(first.steered.options["steering"])


def test_a_run_of_no_tokens_has_no_position_from_0_on(checkpoints: Checkpoints) -> None:
    """Its last is the one before the prompt's last token, whose target is that token."""
    once.load(folder := checkpoints("llama-gqa"))
    term = SteeringTerm("test", {1: direction(width_of(folder))}, "post_ln", 3.0)
    text = {"max_new_tokens": 0, "prompt_tokens": True, "layers": -1}
    plain = lens.run(models.PROMPT, **text)
    for positions in ("generated", "last", (0, None), frozenset({0, 1})):
        late = replace(term, positions=positions)
        for ask in (lambda late=late: lens.run(models.PROMPT, steer=late, **text), lambda late=late: lens.diff(plain, late)):
            with pytest.raises(LensError, match=r"'test' would steer nothing: .* p = -\d+ to -1, and no generated token$"):
                ask()
    for early in (term, replace(term, positions="prompt"), replace(term, positions=(-1, None)), replace(term, steps=(0, 1))):
        assert lens.run(models.PROMPT, steer=early, **text).options["steering"] == [str(early)]
        assert lens.diff(plain, early).kl.max() > 1e-6
    far = frozenset({1 - len(plain.prompt_ids), 0})  # of the longer prompt's positions its first
    told = [run.options["steering"] for run in lens.run([models.PROMPT, "A lens"], steer=replace(term, positions=far), **text)]
    assert [len(terms) for terms in told] == [1, 0]


def test_what_does_not_fit_changes_nothing(checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama-gqa")
    once.load(folder)
    v = direction(width_of(folder))
    before = lens.generate(models.PROMPT, 4, ignore_eos=True).output_ids

    def refused(match: str, **options: Any) -> None:
        given = {"directions": {1: v}, "site": "post_ln", **options}
        with pytest.raises(LensError, match=match) as caught:
            lens.generate(models.PROMPT, 4, steer=SteeringTerm("test", **given))
        assert "\n" not in str(caught.value)

    refused("alpha nan of 'test' is not a finite number", alpha=float("nan"))
    refused("schedule inf", schedule=(float("inf"),))
    refused("site 'nowhere' is not one of", site="nowhere")
    refused("steers layer 9; the model has 4", directions={9: v})
    refused("directions of width 7; the model's hidden states are 128 wide", directions={1: v[:7]})
    refused("not finite", directions={1: v * float("nan")})
    refused("no direction", directions={})
    refused("operator 'multiply'", operator="multiply")
    refused("positions 'somewhere' are not understood", positions="somewhere")
    refused("positions 4:2 are empty", positions=(4, 2))
    refused("would steer nothing", positions=frozenset())
    refused("clip -1", clip=-1.0)
    refused("decay 0", decay=0.0)
    refused("decay '16' of .* is not a positive number", decay="16")
    refused("ablate removes the whole projection", operator="ablate", decay=2.0)
    refused("ablate removes the whole projection: .* scale", operator="ablate", scale={1: 0.5})
    refused("ablate removes the whole projection: several alpha", operator="ablate", alpha=(1.0, 0.0))
    refused("2 values of alpha for 1 sequences", alpha=(1.0, 2.0))
    refused("steps -4:-1 would steer nothing; generated tokens count from 0", steps=(-4, -1))
    refused("steps 5 are not a span", steps=5)
    refused("would steer nothing: .* p = -25 to 3, and generated tokens 0 to 3", positions=(40, 50))
    refused("would steer nothing", positions="prompt", steps=(1, None))
    refused(r"α of 'test' \(1e\+39 with scale and schedule\) is more than", alpha=1e39)
    refused("is more than the model can compute with", alpha=1e20)  # its square, which the next norm takes, is infinite
    refused("was made for a mistral of an unknown number of layers, width 128", made_for=MadeFor("mistral", None, 128))
    refused("the schedule is empty", schedule=[])
    refused("gives something that is not a number", schedule=lambda step: 10.0 ** (400 * step))
    refused("gives something that is not a number", schedule=["1", "0.5"])
    refused(r"α of 'test' \(1e\+39 with", alpha=1e39, directions={0: v, 1: v}, scale={0: 1e-30})
    wrong = ((["calm"], "str"), (1.5, "float"), (torch.ones(3), "Tensor"), ({"v": 1}, "dict"), (np.array(1.0), "ndarray"))
    for given, kind in (*wrong, (lens, "module"), (SteeringVector, "type")):
        with pytest.raises(LensError, match=f"takes vectors and terms .* not {kind}"):
            lens.generate(models.PROMPT, 4, steer=given)
    assert lens.generate(models.PROMPT, 4, ignore_eos=True).output_ids == before
    assert set(current().group.call(probes.hooks)) == {0}


def test_positions_and_schedules_as_users_write_them() -> None:
    assert parse_positions("-3:5") == (-3, 5)
    assert parse_positions("4:") == (4, None)
    assert parse_positions("last") == "last"
    assert parse_positions([0, 2]) == frozenset({0, 2})
    assert parse_positions(range(3)) == frozenset({0, 1, 2})
    assert parse_positions(np.array([3, 1])) == frozenset({1, 3})
    assert tabulate("linear", 4) == (1.0, 0.75, 0.5, 0.25)
    assert tabulate("on/off", 3) == (1.0, 0.0, 1.0)
    assert tabulate(lambda step: step / 2, 3) == (0.0, 0.5, 1.0)
    with pytest.raises(LensError, match="steps 'a:b' are not understood"):
        parse_span("steps", "a:b")
    with pytest.raises(LensError, match="schedule 'fast' is not one of constant, linear, on/off"):
        tabulate("fast", 3)


@pytest.mark.parametrize("positions", ["last", "prompt", "generated", (-3, 4), frozenset({-2, 0, 5})])
def test_padding_shifts_no_positions(positions: Any, checkpoints: Checkpoints) -> None:
    """Prompts of different lengths side by side, each as it would be alone."""
    once.load(folder := checkpoints("llama-gqa"))
    term = SteeringTerm("test", {1: direction(width_of(folder))}, "post_ln", 6.0, positions=positions)
    prompts = ["A lens", models.PROMPT, "The oldest university of technology is"]

    def outputs(given: Any, steer: Any) -> list[Any]:
        made = lens.run(given, TOKENS, capture="resid_post", layers=-1, prompt_tokens=True, ignore_eos=True, steer=steer)
        return made if isinstance(made, list) else [made]

    alone = [outputs(prompt, term)[0] for prompt in prompts]
    for one, other in zip(outputs(prompts, term), alone, strict=True):
        assert one.output_ids == other.output_ids
        np.testing.assert_allclose(one.variables["entropy"], other.variables["entropy"], atol=1e-4)
    plain = outputs(prompts, ())
    assert any(np.abs(a.variables["entropy"] - b.variables["entropy"]).max() > 1e-3 for a, b in zip(alone, plain, strict=True))


@pytest.mark.parametrize("schedule", ["linear", lambda step: 1 - step / TOKENS])
def test_a_schedule_is_over_the_run(schedule: Any, checkpoints: Checkpoints) -> None:
    once.load(folder := checkpoints("llama-gqa"))
    v = direction(width_of(folder))
    stated = SteeringTerm("test", {1: v}, "post_ln", 6.0, schedule=tuple(1 - step / TOKENS for step in range(TOKENS)))
    vector = SteeringVector.of({1: v}, name="test", site="post_ln")
    ours, expected = (
        lens.run(models.PROMPT, TOKENS, capture="resid_post", layers=-1, ignore_eos=True, steer=steer)
        for steer in (vector.steer(6.0, schedule=schedule), stated)
    )
    assert ours.output_ids == expected.output_ids
    np.testing.assert_array_equal(ours.variables["entropy"], expected.variables["entropy"])
    factors = "1 0.9 0.8 0.7 0.6 0.5 0.4 0.30000000000000004 0.19999999999999996 0.09999999999999998"
    assert ours.options["steering"] == [f"test add α=6.0 at post_ln of layer 1; schedule {factors}"]
    assert repr(stated) == "<test add α=6.0 at post_ln of layer 1; schedule 1 0.9 0.8 0.7 … 0.1>"


def test_a_forced_text_is_steered_beside_a_longer_one_as_alone(checkpoints: Checkpoints) -> None:
    """A schedule ends with each text, and a term is told only of the runs that have its positions."""
    once.load(folder := checkpoints("llama-gqa"))
    u, v, w = (
        SteeringVector.of({1: direction(width_of(folder), seed)}, name=name, site="post_ln") for seed, name in enumerate("uvw")
    )
    steer = [
        u.steer(6, schedule="linear"),
        v.steer([3, 2, 1], schedule="linear").for_sequences(0, 2),
        w.steer(3, positions=(4, 7)),
    ]
    prompts, texts = [models.PROMPT, "A lens", "The lamp"], [[5, 6, 7], [5, 6, 7, 8, 9, 10, 11, 12], [9, 9, 9, 9, 9]]
    asked = {"layers": -1, "capture": "resid_post"}
    together = lens.run(prompts, force=texts, steer=steer, **asked)
    for number, run in enumerate(together):
        own = [steer[0]] + ([replace(steer[1], alpha=3.0 - number, sequences=None)] if number != 1 else [])
        own += [steer[2]] if number else []
        alone = lens.run(prompts[number], force=texts[number], steer=own, **asked)
        np.testing.assert_allclose(run.variables["entropy"], alone.variables["entropy"], atol=1e-4)
        assert run.options["steering"] == alone.options["steering"]
    assert [len(run.options["steering"]) for run in together] == [2, 2, 3]


def test_a_run_says_which_of_two_vectors_of_one_name_steered_it(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    one, other = (SteeringVector.of({1: direction(128, seed)}, "resid_post") for seed in (0, 1))
    runs = [lens.run(models.PROMPT, 2, steer=vector * 2) for vector in (one, other)]
    assert runs[0].options["steering"] == runs[1].options["steering"]
    assert [run.options["steering_digests"] for run in runs] == [[(one * 1).digest], [(other * 1).digest]]
    both = lens.compare(models.PROMPT, one * 2 + other, 2)
    assert both.options["steering_digests"] == [(one * 1).digest, (other * 1).digest]
    assert lens.run(models.PROMPT, 2).options["steering_digests"] == []
    assert both.unsteered.output_ids == lens.generate(models.PROMPT, 2).output_ids  # of one type, too


def test_a_run_says_all_of_what_steered_it(checkpoints: Checkpoints) -> None:
    once.load(folder := checkpoints("llama-gqa"))
    both = {1: direction(width_of(folder)), 3: direction(width_of(folder))}
    v = SteeringVector.of(both, name="v", site="post_ln", origin=Origin(layers=4))
    term = v.steer([1.5, 2.5], positions="-2:5", steps="0:4", decay=2, clip=0.1, scale={-1: 0.5}, keep_norm=True)
    first, second = lens.run([models.PROMPT] * 2, 3, layers=-1, steer=[term, (v * 3).for_sequences(1)])
    where = "at post_ln of layer 1,3"
    told = f"v add α={{}} {where}; positions -2:5; steps 0:4; scale 3: 0.5; decay 2; clip 0.1; keep_norm"
    assert first.options["steering"] == [told.format(1.5)]
    assert second.options["steering"] == [told.format(2.5), f"v add α=3.0 {where}"]
    named = lens.run(models.PROMPT, 3, layers=-1, steer=v.steer(1, positions="generated"))
    assert named.options["steering"] == [f"v add α=1.0 {where}; positions generated"]
    with pytest.raises(LensError, match="scale names layer 1, which is not among those steered: 3"):
        v.steer(1, layers=3, scale={1: 2.0})
    exact = v.steer(1, scale={1: 1 / 3, 3: -1e-9}, decay=1e6 / 7, clip=0.12345678, schedule=[1, 2 / 3] * 4)
    factors = " ".join(["1", str(2 / 3)] * 4)
    choices = f"scale 1: {1 / 3}, 3: -1e-09; decay {1e6 / 7}; schedule {factors}; clip 0.12345678"
    assert lens.run(models.PROMPT, 3, layers=-1, steer=exact).options["steering"] == [f"v add α=1.0 {where}; {choices}"]
    short = f"at post_ln of layers 1, 3; {choices.replace(factors, '1 0.667 1 0.667 … 0.667')}"
    assert repr(exact) == f"<v add α=1.0 {short}>"


@pytest.mark.parametrize("layer_type", ["decoder_block", "self_attn", "mlp", "post_attention_layernorm"])
@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "gemma3-text", "olmo2"])
def test_layer_types_of_steering_vectors_act_at_their_modules(name: str, layer_type: str, checkpoints: Checkpoints) -> None:
    """Which are other places where norms follow sublayers; there a vector acts at the module, or is refused."""
    model, _ = once.plain(folder := checkpoints(name))
    once.load(folder)
    block = model.model.layers[1]
    module = block if layer_type == "decoder_block" else getattr(block, layer_type)
    v = direction(width_of(folder))
    vector = lens.load_vector(SimpleNamespace(layer_activations={1: v}, layer_type=layer_type))
    term = vector * ALPHA
    if name != "llama-gqa" and layer_type != "decoder_block":
        other = "site attn_out" if layer_type == "post_attention_layernorm" else "one read at decoder_block"
        words = f"'vector' was read at the output of {layer_type}, which in a {name[:5]}.*; {other} would do"
        for use in (lambda: steered_run(model, term), lambda: lens.evaluate(vector, questions())):
            with pytest.raises(LensError, match=words):
                use()
        if layer_type != "post_attention_layernorm":
            return
        term = vector.steer(ALPHA, site="attn_out")
    run = steered_run(model, term)

    def after(module: Any, args: tuple, output: Any) -> Any:
        return (output[0] + ALPHA * v, *output[1:]) if isinstance(output, tuple) else output + ALPHA * v

    handle = module.register_forward_hook(after)
    try:
        expected = ref.output_logits(model, run.prompt_ids + run.output_ids)[:-1].numpy()
    finally:
        handle.remove()
    np.testing.assert_allclose(logits_of(run), expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_an_error_in_the_middle_leaves_no_hooks(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    once.load(folder := checkpoints("llama-gqa"))
    term = SteeringTerm("test", {1: direction(width_of(folder))}, "post_ln", 3.0)
    before = lens.generate(models.PROMPT, 4, ignore_eos=True).output_ids

    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(intervene.Steering, "prepare", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            lens.run(models.PROMPT, 4, steer=term)
    assert set(current().group.call(probes.hooks)) == {0}
    assert lens.generate(models.PROMPT, 4, ignore_eos=True).output_ids == before
