"""Several prompts in a batch give what each gives alone: tokens, tables and states, whatever the padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import models
import numpy as np
import once
import probes
import pytest
import reference as ref
import torch

import lens_magic as lens
from lens_magic import runs
from lens_magic.errors import LensError
from lens_magic.model import generate
from lens_magic.model.batch import Batch, packed, read_batch, read_forward, rows_of
from lens_magic.model.load import MODEL
from lens_magic.session import current

Checkpoints = Callable[[str], Path]
PROMPTS = [models.PROMPT, "Grind", "Two and two are 4; 10 and 10 are 20, and then she read the letters through it"]
NAMES = ("llama-gqa", "qwen2-bias", "mistral-window", "gemma2")
TOKENS = 12


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_each_gives_alone(name: str, ranks: int, checkpoints: Checkpoints) -> None:
    once.load(checkpoints(name), ranks)
    together = lens.run(PROMPTS, TOKENS, prompt_tokens=True, capture=ref.SITES)
    states = [run.activations("mlp_out") for run in together]  # before the next run takes their place
    for run, prompt, kept in zip(together, PROMPTS, states, strict=True):
        alone = lens.run(prompt, TOKENS, prompt_tokens=True, capture=ref.SITES)
        assert run.output_ids == alone.output_ids
        assert run.positions == alone.positions
        assert run.text == alone.text
        for variable, values in alone.variables.items():
            if variable not in ("token_id", "target_rank"):  # near ties may change places
                np.testing.assert_allclose(run.variables[variable], values, rtol=2e-4, atol=2e-5, err_msg=variable)
        same = (run.variables["token_id"] == alone.variables["token_id"]).mean()
        assert same > 0.999
        expected = alone.activations("mlp_out")
        assert float((kept - expected).norm() / expected.norm()) < 1e-5


def test_a_batch_walks_along_given_tokens(ranks: int, checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"), ranks)
    free = lens.run(PROMPTS, TOKENS, ignore_eos=True)
    given = [run.output_ids[: 4 + number] for number, run in enumerate(free)]  # of different lengths
    forced = lens.run(PROMPTS, force=given)
    for run, before, ids in zip(forced, free, given, strict=True):
        assert run.output_ids == ids
        assert run.positions == list(range(len(ids)))
        np.testing.assert_allclose(
            run.variables["target_prob"], before.variables["target_prob"][..., : len(ids)], rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("name", NAMES)
def test_long_prompts_are_read_in_pieces(name: str, ranks: int, checkpoints: Checkpoints) -> None:
    once.load(checkpoints(name), ranks)
    whole = lens.run(PROMPTS, TOKENS, ignore_eos=True, prompt_tokens=True)
    current().group.call(probes.set_prefill_columns, 4)
    try:
        pieces = lens.run(PROMPTS, TOKENS, ignore_eos=True, prompt_tokens=True)
    finally:
        current().group.call(probes.set_prefill_columns, 2048)
    for before, after in zip(whole, pieces, strict=True):
        assert after.output_ids == before.output_ids
        for variable in ("entropy", "target_prob", "kl_final"):
            np.testing.assert_allclose(after.variables[variable], before.variables[variable], rtol=2e-4, atol=2e-5)


def test_of_a_batch_each_ends_at_its_own_end_token(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    rank, tokenizer = current().group.rank, current().require_model().tokenizer
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    plain = generate.generate(rank, rank.store[MODEL], prompts, TOKENS).outputs
    ends = {token for output in plain for token in output[:-1]}
    apart = [end for end in ends if 0 < sum(end in output for output in plain) < len(plain)]
    assert apart
    for end in apart:
        expected = [output[: output.index(end) + 1] if end in output else output for output in plain]
        assert generate.generate(rank, rank.store[MODEL], prompts, TOKENS, stop_ids=[end]).outputs == expected


def test_before_every_piece_of_a_long_prompt_but_the_first_it_can_be_stopped(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    once.load(checkpoints("llama-gqa"))
    monkeypatch.setattr(generate, "PREFILL_COLUMNS", 4)
    length = len(current().require_model().tokenizer(models.PROMPT)["input_ids"])
    came: list[tuple[object, ...]] = []
    runs.generate(current(), models.PROMPT, 1, on_event=came.append)
    begins = range(4, length, 4)
    assert [event for event in came if event[0] == "prefill"] == [("prefill", begin, length) for begin in begins]

    def stop(event: tuple[object, ...]) -> None:
        if event[:2] == ("prefill", begins[-1]):
            current().group.interrupt()

    with pytest.raises(KeyboardInterrupt):
        runs.generate(current(), models.PROMPT, 1, on_event=stop)


def forward_ends(rank: object, sequences: list[list[int]]) -> torch.Tensor:
    loaded = rank.store[MODEL]  # type: ignore[attr-defined]
    return loaded.head.logits(read_forward(loaded, sequences))


def test_one_forward_over_a_batch(ranks: int, checkpoints: Checkpoints) -> None:
    folder = checkpoints("gemma2")
    model, tokenizer = once.plain(folder)
    once.load(folder, ranks)
    sequences = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    logits = torch.cat(current().group.call(forward_ends, sequences), -1)
    expected = torch.stack([ref.output_logits(model, ids)[-1] for ids in sequences])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


BEGINNING = [20, 41, 7, 133, 98]
FORKING = [
    [*BEGINNING, 250, 3, 77],
    [*BEGINNING, 250, 11, 160, 91, 14],
    [91, 14, 222, 30],  # with nothing to share
    BEGINNING,  # what others go on from
    [*BEGINNING, 3],
    [*BEGINNING, 3],  # twice the same
]


def forked_ends(rank: object, rows: list[list[int]], times: int = 1) -> torch.Tensor:
    loaded = rank.store[MODEL]  # type: ignore[attr-defined]
    batch = Batch.forked([[FORKING[number] for number in row] for row in rows], loaded.device, times)
    return loaded.head.logits(read_batch(loaded, batch))


def rows_chosen(rank: object, sequences: list[list[int]]) -> list[list[int]]:
    return rows_of(rank.store[MODEL], sequences)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", models.FAMILIES)
def test_sequences_that_share_a_row_give_what_each_gives_alone(name: str) -> None:
    """In every family: a mask of ours reaches all of its layers, and places are counted along each sequence."""
    model = models.create(name)
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None):
        config.sliding_window = 64
    lens.attach(model, models.tokenizer_of(280))
    rows = [[1, 0, 4], [2], [3, 5]]
    logits = current().group.call(forked_ends, rows)[0]
    expected = torch.stack([ref.output_logits(model, FORKING[number])[-1] for row in rows for number in row])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    for rows in ([[1, 0, 4], [2]], [[3, 5]]):
        often = current().group.call(forked_ends, rows, 3)[0]
        expected = torch.stack([ref.output_logits(model, FORKING[n])[-1] for row in rows for _ in range(3) for n in row])
        torch.testing.assert_close(often, expected, rtol=1e-4, atol=1e-4)


def test_shared_rows_on_several_ranks(ranks: int, checkpoints: Checkpoints) -> None:
    folder = checkpoints("qwen3-odd")
    model, _ = once.plain(folder)
    once.load(folder, ranks)
    logits = torch.cat(current().group.call(forked_ends, [[0, 1], [2], [5, 4, 3]]), -1)
    expected = torch.stack([ref.output_logits(model, FORKING[number])[-1] for number in (0, 1, 2, 5, 4, 3)])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_which_sequences_share_a_row(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))

    def rows(sequences: list[list[int]]) -> set[tuple[int, ...]]:
        return {tuple(sorted(row)) for row in current().group.call(rows_chosen, sequences)[0]}

    assert rows([[1, 2, 3, 4], [9, 2, 3], [1, 2, 3, 5]]) == {(0, 2), (1,)}
    assert rows([[1, 2, 3]]) == {(0,)}
    assert rows([[1, 2, 3], [2, 3], [3]]) == {(0,), (1,), (2,)}
    # A third that shares less would have what two share run again.
    assert rows([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 7]]) == {(0, 1), (2,)}
    # Not all of a hundred, however much they share: attention's mask is the square of a row.
    many = rows([[*range(40), last] for last in range(100)])
    assert sorted(number for row in many for number in row) == list(range(100))
    assert {len(row) for row in many} == {42, 16}
    assert len(rows([[*range(1500), last, *range(600)] for last in range(2)])) == 2
    # The mask knows no window: beside a sequence that is longer than one, which has the same mask, all are left alone.
    once.load(checkpoints("mistral-window"))
    assert rows([[1, 2, 3, 4], [1, 2, 3, 5]]) == {(0, 1)}
    assert rows([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 8]]) == {(0,), (1,)}
    assert rows([[1, 2, 3, 4], [1, 2, 3, 5], [9, 2, 3, 4, 5, 6, 7]]) == {(0,), (1,), (2,)}


def test_bad_batches(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    with pytest.raises(LensError, match="there is no prompt"):
        lens.run([])
    with pytest.raises(LensError, match="force has 1 continuations for 2 prompts"):
        lens.run(["A", "B"], force=["x"])
    with pytest.raises(LensError, match="force is one continuation for 2 prompts; a list of one for each would do"):
        lens.run(["A", "B"], force="no")  # not its letters
    with pytest.raises(LensError, match=r"prompt 2 of 2 is empty; a text to continue would do$"):
        lens.run(["A", ""])
    with pytest.raises(LensError, match="the prompt is empty"):
        lens.run([""])
    for prompt, words in (
        (5, "a text, .* or a list of several, not int"),
        (["A", 5], "a text, .* or a list of several, not 5"),
        (["A", "\ud83d"], "half of a character"),
    ):
        with pytest.raises(LensError, match=words):
            lens.run(prompt)  # type: ignore[call-overload]


def test_a_batch_may_take_all_of_the_context_and_no_more() -> None:
    prompts, new = [[1] * 4, [1] * 2], [3, 7]  # 6 and 8 positions, side by side 10
    runs._check_lengths(SimpleNamespace(context=10), prompts, new, False)  # type: ignore[arg-type]
    with pytest.raises(LensError, match=r"side by side these prompts and texts take 10 positions, more than .* context of 9"):
        runs._check_lengths(SimpleNamespace(context=9), prompts, new, False)  # type: ignore[arg-type]


def test_a_given_text_beyond_the_context_is_refused(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    with pytest.raises(LensError, match="exceed the model's context of 512"):
        lens.run("A lens", force="光 " * 2000)


def test_the_lens_of_one_token_is_refused(checkpoints: Checkpoints) -> None:
    """Nothing follows it."""
    once.load(checkpoints("llama-gqa"))
    with pytest.raises(LensError, match="the lens of a text needs at least 2 tokens"):
        lens.run(["A lens", "A"], 0, prompt_tokens=True)


def test_given_texts_are_read_but_for_the_longest_ones_last_token() -> None:
    batch = generate._side_by_side([[1, 2], [3]], [[4, 5, 6], [7]], torch.device("cpu"))
    assert batch.ids.tolist() == [[1, 2, 4, 5], [0, 3, 7, 0]]


def test_a_batch_has_as_many_sequences_and_tokens_as_it_may() -> None:
    assert list(packed([3, 5, 3, 3, 9], tokens=6)) == [[0, 2], [3], [1], [4]]
    assert list(packed([2, 1, 1, 1, 1], tokens=100, most=2)) == [[1, 2], [3, 4], [0]]


def test_a_text_beyond_the_context_is_refused_once(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the tokenizer too, which warns of what will not be tried."""
    once.load(checkpoints("llama-gqa"))
    monkeypatch.setattr(current().require_model().tokenizer, "model_max_length", 512)
    warned = []
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", lambda *words: warned.append(words))
    with pytest.raises(LensError, match="more than the model's context"):
        lens.generate("光 " * 2000)
    assert warned == []
