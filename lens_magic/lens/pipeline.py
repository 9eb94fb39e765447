"""One run on every rank: generate with capture, then project."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..model.choose import Sampling
from ..model.generate import Generation, generate
from ..model.load import Loaded, loaded_on
from ..ranks.memory import peak_memory, reset_peak_memory
from ..ranks.rank import Rank
from ..steer.intervene import Steering
from ..steer.term import SteeringTerm
from .capture import NEWEST, CapturePlan, Trajectories
from .decode import project
from .projector import PLAIN, Look, projector_for
from .stream import Stream, joined


@dataclass(frozen=True)
class Request:
    """A run as sent to the ranks, already validated.

    Attributes:
        prompts: token ids of one prompt, or of several that run as one batch.
        forced: for each prompt, tokens to read instead of generating (teacher forcing).
        prompt_tokens: capture the prompt's earlier positions too.
        steering: the steering terms; states are captured after steering.
        capture_dtype: name of the dtype the states are kept in; None for the model's.
        offload: keep the states in host memory.
        run_id: identifies the run whose states the ranks keep.
        look: the lens, and the tokens to follow.
        stream: project while generating, as far as it slows generation little.
    """

    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    top_k: int
    layers: tuple[int, ...]
    sites: tuple[str, ...]
    sampling: Sampling
    stop_ids: tuple[int, ...]
    forced: tuple[tuple[int, ...], ...] | None
    prompt_tokens: bool
    run_id: str
    steering: tuple[SteeringTerm, ...] = ()
    capture_dtype: str | None = None
    offload: bool = False
    look: Look = PLAIN
    stream: bool = False

    @property
    def tokens(self) -> int:
        """The most tokens that can follow any of the prompts."""
        return max(map(self.new, range(len(self.prompts))))

    @property
    def longest(self) -> int:
        """Number of tokens of the longest prompt."""
        return max(len(ids) for ids in self.prompts)

    @property
    def plan(self) -> CapturePlan:
        """What to capture: columns from the prompts' last token on, or from the longest prompt's first."""
        before = max(map(self.before, range(len(self.prompts))))
        dtype = getattr(torch, self.capture_dtype) if self.capture_dtype else None
        first, rows = self.longest - 1 - before, before + self.tokens
        return CapturePlan(self.sites, self.layers, first, rows, len(self.prompts), dtype, self.offload)

    def before(self, number: int) -> int:
        """Number of a prompt's positions that are captured before its last, that is with p < 0."""
        return len(self.prompts[number]) - 1 if self.prompt_tokens else 0

    def first_row(self, number: int) -> int:
        """The captured row of a prompt's first position; those before it belong to longer prompts of the batch."""
        return self.longest - 1 - self.before(number) - self.plan.first

    def targets(self, number: int, output: Sequence[int]) -> list[int]:
        """The token that follows each captured position of a prompt, continued by ``output``."""
        prompt = self.prompts[number]
        return [*prompt[len(prompt) - self.before(number) :], *output]

    def new(self, number: int) -> int:
        """The most tokens that can follow a prompt."""
        return self.max_new_tokens if self.forced is None else len(self.forced[number])


def run_lens(rank: Rank, request: Request) -> dict[str, Any]:
    """Generate, then project what was captured. Collective.

    Returns:
        On every rank its ``memory``, in bytes; on rank 0 also ``generation``, ``variables`` of each prompt and ``project_s``.
    """
    loaded = loaded_on(rank)
    reset_peak_memory(loaded.device)
    rank.store.drop(NEWEST)  # free the last run's states first
    trajectories = Trajectories(rank, loaded, request.plan)
    projector = projector_for(rank, loaded, request.look, trajectories)
    made = Generation()

    def project_rows(number: int, begin: int, end: int | None, aside: bool = False) -> tuple[Any, bool]:
        first, wanted = request.first_row(number) + begin, request.targets(number, made.outputs[number])[begin:end]
        return project(rank, loaded, projector, trajectories, first, wanted, request.top_k, number, aside)

    stream = None
    if request.stream:
        stream = Stream(rank, lambda begin, end: project_rows(0, begin, end, aside=True)[0], request.before(0))
    generate(
        rank,
        loaded,
        request.prompts,
        request.max_new_tokens,
        request.sampling,
        request.stop_ids,
        [*_steering(loaded, request.steering, len(request.prompts)), trajectories],
        request.forced,
        tell=stream.tell if stream else None,
        after_step=stream.after_step if stream else None,
        made=made,
    )
    rank.store[NEWEST] = (request.run_id, trajectories)
    if made.interrupted:
        rank.acknowledge_stop()
    started = time.perf_counter()
    found, cut_short = [], False
    for number in range(len(request.prompts)):
        begin = stream.done if stream and number == 0 else 0
        variables, stopped = project_rows(number, begin, begin if cut_short else None)
        found.append(variables)
        cut_short |= stopped
    made.interrupted |= cut_short
    project_s = time.perf_counter() - started
    memory = {"captures": trajectories.nbytes, "peak": peak_memory(loaded.device)}
    if rank.rank != 0:
        return {"memory": memory}
    if stream is not None:
        found[0] = joined([*stream.parts, found[0]])
        made.streamed, made.stream_s = stream.done, stream.spent_s
    return {"memory": memory, "generation": made, "variables": found, "project_s": project_s}


def _steering(loaded: Loaded, terms: Sequence[SteeringTerm], batch: int) -> list[Steering]:
    return [Steering(loaded, terms, batch)] if terms else []


def run_plain(
    rank: Rank,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    steering: Sequence[SteeringTerm] = (),
) -> Generation:
    """Generate without capturing. Collective."""
    loaded = loaded_on(rank)
    visitors = _steering(loaded, steering, len(prompts))
    made = generate(rank, loaded, prompts, max_new_tokens, sampling, stop_ids, visitors)
    if made.interrupted:
        rank.acknowledge_stop()
    return made
