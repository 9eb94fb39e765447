"""The decode loop: how often the model runs, where it stops, how it samples, and that nothing stays attached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import once
import probes
import pytest
import reference as ref
import torch

import lens_magic as lens
from lens_magic import prompts, runs
from lens_magic.errors import Interrupted, LensError
from lens_magic.model.choose import nucleus
from lens_magic.model.head import first_largest
from lens_magic.model.load import MODEL
from lens_magic.session import Session, current
from lens_magic.steer.vector import SteeringVector

Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module")
def session(ranks: int, checkpoints: Checkpoints) -> Session:
    once.load(checkpoints("llama-gqa"), ranks)
    return current()


def test_one_prefill_then_one_step_a_token(session: object) -> None:
    ids = prompts.read(current().require_model(), models.PROMPT).ids
    for lengths in current().group.call(probes.forward_shapes, ids, 9):
        assert lengths == [len(ids)] + [1] * 8


def test_capturing_changes_no_token(session: object) -> None:
    run = lens.run(models.PROMPT, 16, ignore_eos=True)
    plain = lens.generate(models.PROMPT, 16, ignore_eos=True)
    assert run.output_ids == plain.output_ids
    assert run.text == plain.text


def test_nothing_stays_attached(session: object) -> None:
    lens.run(models.PROMPT, 2)
    assert set(current().group.call(probes.hooks)) == {0}
    with pytest.raises(Interrupted):
        runs.run(current(), models.PROMPT, 100, ignore_eos=True, on_event=lambda event: current().group.interrupt())
    assert set(current().group.call(probes.hooks)) == {0}

    def trip(event: object) -> None:
        raise RuntimeError("the screen is gone")

    with pytest.raises(RuntimeError, match="screen"):
        runs.run(current(), models.PROMPT, 100, on_event=trip)
    assert set(current().group.call(probes.hooks)) == {0}
    assert len(lens.run(models.PROMPT, 2, ignore_eos=True).output_ids) == 2


def test_an_interrupt_keeps_what_was_made(session: object) -> None:
    seen: list[str] = []

    def stop_at_five(event: tuple[str, int]) -> None:
        seen.append(event[0])
        if seen.count("token") == 5:
            current().group.interrupt()

    whole = lens.run(models.PROMPT, 20, ignore_eos=True)
    with pytest.raises(Interrupted) as caught:
        runs.run(current(), models.PROMPT, 20, ignore_eos=True, on_event=stop_at_five)
    part = caught.value.result
    assert part.interrupted
    # The flag travels with the next token's choice.
    assert 5 <= len(part.output_ids) <= 6
    assert part.output_ids == whole.output_ids[: len(part.output_ids)]
    assert part.positions == list(range(len(part.output_ids)))
    assert (part.variables["token_id"] == whole.variables["token_id"][:, :, : len(part.output_ids)]).all()


def test_an_interrupt_says_in_one_line_where_what_was_made_is() -> None:
    told = "Interrupted: stopped; what was done by then is the error's `result` (in a notebook: sys.last_value.result)"
    assert lens.Interrupted(5)._render_traceback_() == [told]


@pytest.mark.parametrize("ask", [lens.run, lens.generate, lens.compare])
def test_an_interrupt_before_the_first_token_is_not_lost(
    session: object, monkeypatch: pytest.MonkeyPatch, ask: Callable[..., object]
) -> None:
    """While the memory is asked for, the ranks have something to do already, but nothing to stop yet."""
    width = current().require_model().width
    vector = SteeringVector.of({1: torch.ones(width)}, site="resid_post", name="v")
    with monkeypatch.context() as patched:
        patched.setattr(runs, "refuse_run", lambda *facts: current().group.interrupt())
        with pytest.raises(Interrupted) as caught:
            ask(models.PROMPT, max_new_tokens=20, ignore_eos=True, steer=[vector])
    part = caught.value.result
    assert len(getattr(part, "steered", part).output_ids) < 3
    assert len(lens.generate(models.PROMPT, 2, ignore_eos=True).output_ids) < 3


def test_an_interrupt_in_the_projection_keeps_the_positions_done(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one rank: the size of blocks can be changed in this process alone (tests/kernel has two)."""
    from lens_magic.lens import decode

    once.load(checkpoints("llama-gqa"))
    monkeypatch.setitem(decode._BLOCK_BYTES, "cpu", 4 * 320 * 3)  # three positions a block

    def stop(event: tuple[str, int]) -> None:
        if event[0] == "projecting":
            current().group.interrupt()

    with pytest.raises(Interrupted) as caught:
        runs.run(current(), models.PROMPT, 12, ignore_eos=True, on_event=stop)
    part = caught.value.result
    assert len(part.output_ids) == 12
    assert part.positions == [0, 1, 2]
    assert part.to_xarray().sizes["position"] == 3


def test_generation_stops_at_an_end_token_which_is_not_in_the_text(session: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model = current().require_model()
    assert model.stop_ids == (0, 7)  # a list in generation_config, with a token of index 0 in it
    free = lens.generate(models.PROMPT, 8, ignore_eos=True)
    stops = (free.output_ids[5], free.output_ids[3])
    first = min(free.output_ids.index(stop) for stop in stops)
    monkeypatch.setattr(current(), "model", replace(model, stop_ids=stops))
    run = lens.run(models.PROMPT, 8)
    assert run.output_ids == free.output_ids[: first + 1]
    assert run.text == model.tokenizer.decode(free.output_ids[:first])
    assert lens.run(models.PROMPT, 8, ignore_eos=True).output_ids == free.output_ids


@pytest.fixture(scope="session")
def one_rank(checkpoints: Checkpoints) -> Session:
    """Beside the ranks that are tested. It is not closed: that would disconnect those too."""
    session = Session(1)
    session.load(str(checkpoints("llama-gqa")))
    return session


@pytest.mark.parametrize(("temperature", "top_p", "seed"), [(1.0, 1.0, 0), (0.7, 0.9, 3), (1.5, 0.5, 1), (5.0, 1.0, 2)])
def test_sampling_is_the_same_on_any_number_of_ranks(
    session: object, one_rank: Session, temperature: float, top_p: float, seed: int
) -> None:
    options = {"temperature": temperature, "top_p": top_p, "ignore_eos": True}
    made = lens.run(models.PROMPT, 24, seed=seed, **options)
    again = lens.generate(models.PROMPT, 24, seed=seed, **options)
    assert made.output_ids == again.output_ids
    assert made.output_ids == runs.generate(one_rank, models.PROMPT, 24, seed=seed, **options).output_ids
    other = lens.generate(models.PROMPT, 24, seed=seed + 99, **options)
    assert other.output_ids != made.output_ids


def test_sampled_tokens_follow_the_reference_distribution(checkpoints: Checkpoints) -> None:
    """First tokens over many seeds: none outside the nucleus, and frequencies within chance of its probabilities."""
    folder = checkpoints("llama-gqa")
    model, _ = once.plain(folder)
    once.load(folder)
    ids = prompts.read(current().require_model(), models.PROMPT).ids
    expected = torch.tensor(ref.Sampling(temperature=2.0, top_p=0.8).distribution(ref.output_logits(model, ids)[-1]))
    draws = 400
    counts = torch.zeros(len(expected), dtype=torch.float64)
    for seed in range(draws):
        made = lens.generate(models.PROMPT, 1, temperature=2.0, top_p=0.8, seed=seed, ignore_eos=True)
        counts[made.output_ids[0]] += 1
    assert counts[expected == 0].sum() == 0
    distance = float((counts / draws - expected).abs().sum() / 2)
    by_chance = float((expected * (1 - expected) / draws).sqrt().sum() / 2)
    assert distance < 2 * by_chance


def spoil(rank: Any) -> None:
    """One number of the head is none, on the last rank."""
    if rank.rank == rank.size - 1:
        rank.store[MODEL].head.weight[-1, 0] = torch.nan


def test_logits_that_are_no_numbers_are_an_error_on_every_rank(ranks: int, checkpoints: Checkpoints) -> None:
    folder = str(checkpoints("llama-gqa"))
    lens.load(folder, ranks=ranks)
    expected = lens.generate(models.PROMPT, 4, ignore_eos=True).output_ids
    current().group.call(spoil)
    for temperature in (0.0, 1.0):
        with pytest.raises(LensError, match="logits are not finite"):
            lens.generate(models.PROMPT, 4, temperature=temperature)
    lens.load(folder, ranks=ranks)  # by the same ranks
    assert lens.generate(models.PROMPT, 4, ignore_eos=True).output_ids == expected


@pytest.mark.parametrize("rows", [1, 7, 2304, 8192, 8193, 8320, 100_003])
def test_the_first_of_the_largest_is_chosen(rows: int) -> None:
    """Of few and of many, wherever the largest lie: in the last, unfinished group, on either side of a border, all equal."""
    generator = torch.Generator().manual_seed(rows)
    for logits in (
        torch.randint(-50, 50, (4, rows), generator=generator).float(),
        torch.randn((4, rows), generator=generator),
        torch.zeros(1, rows),
        torch.arange(rows, dtype=torch.float32)[None],
    ):
        expected = [int((row == row.max()).nonzero()[0]) for row in logits]
        assert first_largest(logits).tolist() == expected
    spoiled = torch.randn((1, rows), generator=generator)
    spoiled[0, rows // 2] = torch.nan
    assert spoiled[0, first_largest(spoiled)[0]].isnan()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_the_nucleus_equals_the_reference(top_p: float) -> None:
    generator = torch.Generator().manual_seed(7)
    for size in (1, 2, 50):
        probabilities = torch.softmax(torch.randn(size, generator=generator, dtype=torch.float64) * 2, -1)
        kept = nucleus(probabilities, top_p).nonzero()[:, 0].tolist()
        assert kept == sorted(ref.Sampling(top_p=top_p).nucleus(probabilities.numpy()).tolist())


def test_text_streams_as_it_is_generated(session: object) -> None:
    from lens_magic.model.tokens import TextStream

    model = current().require_model()
    stream, pieces = TextStream(model.tokenizer, model.stop_ids), []
    made = runs.generate(
        current(), models.PROMPT, 30, ignore_eos=True, on_event=lambda event: pieces.append(stream.add(event[1]))
    )
    whole = "".join(pieces)
    assert made.text.startswith(whole)
    assert len(made.text) - len(whole) <= 4  # an unfinished character at the end
