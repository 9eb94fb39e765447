"""Rows projected while the model is still generating: the same rows, in order, within their share of the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import once
import pytest

import lens_magic as lens
from lens_magic import prompts, runs
from lens_magic.errors import LensError
from lens_magic.lens import stream as streaming
from lens_magic.ranks.rank import Rank
from lens_magic.session import current

Checkpoints = Callable[[str], Path]
TOKENS = 40


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 decides; let it project as much as there is, at once."""
    monkeypatch.setattr(streaming, "SHARE", 1e9)
    monkeypatch.setattr(streaming, "_PAUSE_S", 0.0)


@pytest.mark.parametrize("options", [{}, {"prompt_tokens": True}, {"track": True}, {"track": [3, 5], "norm": "frozen"}])
def test_streamed_rows_are_the_rows(options: dict[str, Any], ranks: int, checkpoints: Checkpoints, eager: None) -> None:
    once.load(checkpoints("llama-odd-vocab"), ranks)
    seen: list[tuple[int, int]] = []
    tokens = 0

    def note(event: tuple[Any, ...]) -> None:
        nonlocal tokens
        tokens += event[0] == "token"
        if event[0] == "rows":
            seen.append(event[1:3])
            rows = event[3]["entropy"].shape[-1]
            assert rows == event[2] - event[1]
            before = run_before if options.get("prompt_tokens") else 0
            assert event[2] <= before + tokens  # none is shown whose token has not come

    run_before = len(prompts.read(current().require_model(), models.PROMPT).ids) - 1
    streamed = runs.run(current(), models.PROMPT, TOKENS, ignore_eos=True, stream_lens=True, on_event=note, **options)
    plain = lens.run(models.PROMPT, TOKENS, ignore_eos=True, **options)
    assert streamed.output_ids == plain.output_ids
    assert streamed.positions == plain.positions
    assert streamed.variables.keys() == plain.variables.keys()
    for name, values in plain.variables.items():
        np.testing.assert_allclose(streamed.variables[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert seen[0][0] == 0
    assert [end for _, end in seen[:-1]] == [begin for begin, _ in seen[1:]]  # one after another, none twice
    assert seen[-1][1] == streamed.timings["streamed"] > TOKENS // 2


def test_an_interrupt_keeps_what_was_streamed(checkpoints: Checkpoints, eager: None) -> None:
    once.load(checkpoints("llama-gqa"))
    group = current().group
    with pytest.raises(lens.Interrupted) as stopped:
        runs.run(
            current(),
            models.PROMPT,
            200,
            ignore_eos=True,
            stream_lens=True,
            on_event=lambda event: group.interrupt() if event[0] == "rows" and event[2] > 5 else None,
        )
    run = stopped.value.result
    assert 5 < len(run.output_ids) < 200
    assert len(run.positions) == len(run.output_ids)
    assert run.variables["entropy"].shape[-1] == len(run.output_ids)


@pytest.mark.parametrize(("a_call", "a_row"), [(0.0, 0.05), (0.03, 0.002), (0.2, 0.02)])
def test_projecting_takes_its_share_of_the_time(a_call: float, a_row: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: a token takes 10 ms; after 2,000 tokens no more than the share has gone into rows."""
    clock, calls = [0.0], list[int]()
    monkeypatch.setattr(streaming.time, "perf_counter", lambda: clock[0])

    def project(begin: int, end: int) -> dict[str, np.ndarray]:
        clock[0] += a_call + a_row * (end - begin)
        calls.append(end - begin)
        return {}

    stream = streaming.Stream(Rank(), project, before=0)
    for token in range(1, 2001):
        told = stream.tell()
        clock[0] += 0.01
        stream.after_step(token, told)
    assert stream.spent_s <= streaming.SHARE * clock[0] + a_call + a_row
    if stream.done < 0.9 * 2000:
        assert stream.spent_s >= 0.8 * streaming.SHARE * clock[0] - 2 * a_call  # and it is used
    assert stream.done * a_row + len(calls) * a_call == pytest.approx(stream.spent_s)
    assert len(calls) * a_call <= 0.7 * stream.spent_s  # for rows rather than for calls


def test_what_cannot_be_streamed(checkpoints: Checkpoints) -> None:
    once.load(checkpoints("llama-gqa"))
    with pytest.raises(LensError, match="only a single prompt's tokens can be streamed"):
        lens.run(["A", "B"], stream_lens=True)
