"""The one decode loop: a prefill, then one cached forward per token, the same on every rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..ranks.rank import Rank
from ..ranks.recording import do
from .batch import Batch
from .cache import Place, cache_argument, cache_of
from .choose import GREEDY, Choice, Chooser, Sampling
from .graph import Eager, Recorded, runner_for
from .sites import Visitor, Window, attached

if TYPE_CHECKING:
    from .load import Loaded

PREFILL_COLUMNS = 2048
"""Tokens of a prompt read at a time, which limits a forward's memory on long prompts and lets the user stop in between."""

AfterStep = Callable[[int, Sequence[float]], None]
"""Called on every rank between two steps, with the number of tokens chosen so far and the numbers rank 0 sent with the last."""


@dataclass
class Generation:
    """Result of a generation.

    Attributes:
        outputs: for each prompt its new tokens, an end token included.
        prefill_s, decode_s: seconds to the first token, and from the first to the last.
        interrupted: whether the user stopped it.
        forwards: how often the model ran.
        streamed, stream_s: number of positions projected while generating, and the seconds of ``decode_s`` this took.
    """

    outputs: list[list[int]] = field(default_factory=list)
    prefill_s: float = 0.0
    decode_s: float = 0.0
    interrupted: bool = False
    forwards: int = 0
    streamed: int = 0
    stream_s: float = 0.0

    @property
    def output_ids(self) -> list[int]:
        """The first prompt's tokens."""
        return self.outputs[0]

    @property
    def longest(self) -> int:
        """Number of tokens of the longest output."""
        return max(len(output) for output in self.outputs)


def generate(
    rank: Rank,
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_ids: Sequence[int] = (),
    visitors: Sequence[Visitor] = (),
    forced: Sequence[Sequence[int]] | None = None,
    tell: Callable[[], Sequence[float]] | None = None,
    after_step: AfterStep | None = None,
    made: Generation | None = None,
) -> Generation:
    """Generate up to ``max_new_tokens`` after each prompt, with ``visitors`` at the model's sites.

    For T tokens the model runs over the prompts once, then T − 1 times over one token of each with cached keys and values.
    An interrupt on rank 0 stops all ranks after the same token. Every rank calls this with the same arguments.

    Emits ("token", id, sequence) for each token, and ("prefill", done, total) while a long prompt is read.

    Args:
        visitors: in the order in which they see the states.
        forced: for each prompt, tokens to read instead of choosing any; as they are known, they take no steps.
        tell: returns numbers, always equally many, that rank 0 sends to all ranks with every token (other ranks' are ignored).
        after_step: called between steps with the numbers rank 0 sent.
        made: the generation to fill in and return, for callers that read it meanwhile; by default a new one.

    Raises:
        LensError: the model's logits are not finite.
        KeyboardInterrupt: stopped before the first token.
    """
    walked = forced is not None or max_new_tokens == 0
    endings = forced if forced is not None else [()] * len(prompts)
    batch = _side_by_side(prompts, endings, loaded.device)
    columns = batch.columns if walked else batch.columns + max_new_tokens - 1
    window = Window(0, 0, max(len(prompt) for prompt in prompts) - 1, batch.padding)
    made = made or Generation()
    started = time.perf_counter()
    looked_at = attached(loaded.model, loaded.anatomy, visitors, window)
    with torch.inference_mode(), looked_at:
        sequence = _Sequence(loaded, batch, columns, visitors, window, made)
        normalised = _prefill(rank, sequence)
        if walked:
            made.outputs = [list(ending) for ending in endings]
            made.prefill_s = time.perf_counter() - started
            return made
        changed = any(visitor.changes for visitor in visitors)
        chooser = Chooser(rank, loaded, sampling, batch.size, told=len(tell()) if tell else 0, steered=changed)
        loop = _Loop(rank, sequence, chooser, tell, after_step, frozenset(stop_ids), max_new_tokens)
        loop.run(normalised, started)
    return made


def _side_by_side(prompts: Sequence[Sequence[int]], endings: Sequence[Sequence[int]], device: torch.device) -> Batch:
    """Batch prompts, their last tokens in one column, followed by their endings without the longest one's last token.

    Shorter endings are padded on the right, which the tokens to the left never attend to.
    """
    longest = max(len(ending) for ending in endings)
    walks = [[*ending, *[0] * (longest - len(ending))][:-1] for ending in endings]
    return Batch.of([[*prompt, *walk] for prompt, walk in zip(prompts, walks, strict=True)], device)


def _prefill(rank: Rank, sequence: _Sequence) -> torch.Tensor:
    """Read the prompts and return the last tokens' normalised states ``[batch, d]``."""
    total = sequence.batch.columns
    for begin in range(0, total, PREFILL_COLUMNS):
        end = min(total, begin + PREFILL_COLUMNS)
        if begin > 0:
            rank.emit(("prefill", begin, total))
            if rank.agree_to_stop():
                rank.acknowledge_stop()
                raise KeyboardInterrupt
        normalised = sequence.read(begin, end)
    return normalised


class _Sequence:
    """A batch of sequences on its way through the model: the cache, and the current columns."""

    def __init__(
        self, loaded: Loaded, batch: Batch, columns: int, visitors: Sequence[Visitor], window: Window, made: Generation
    ) -> None:
        self.loaded, self.batch, self.visitors, self.window, self.made = loaded, batch, visitors, window, made
        self.place = Place(columns, loaded.device)
        self.cache = {cache_argument(loaded.backbone): cache_of(loaded.layers, self.place)}
        self.mask = batch.mask(self.place.capacity, always=loaded.anatomy.wants_mask)
        self.tokens = torch.zeros((batch.size, 1), dtype=torch.long, device=loaded.device)  # of the next step
        self.position_ids = batch.position_ids(batch.columns, 1)

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Run over columns of the prompts and return the last one's normalised states ``[batch, d]``."""
        self.move(end - begin)
        normalised = self._forward(self.batch.ids[:, begin:end], self.batch.position_ids(begin, end - begin))
        self.moved()
        return normalised

    def step(self) -> torch.Tensor:
        """Run over the next token of each sequence, on the device only; called between :meth:`move` and :meth:`moved`."""
        normalised = self._forward(self.tokens, self.position_ids)
        self.position_ids += 1
        return normalised

    def move(self, length: int, boundary: int = 1, recorded: bool = False) -> None:
        """Move on to the next columns; called before a forward."""
        self.place.recorded = recorded
        self.place.move(length, boundary)
        self.window.start, self.window.length = self.place.start, length
        for visitor in self.visitors:
            visitor.prepare(self.window)

    def moved(self) -> None:
        """Count a forward and call the visitors' ``finish``; called after a forward."""
        self.made.forwards += 1
        for visitor in self.visitors:
            visitor.finish(self.window)

    def _forward(self, ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        output = self.loaded.backbone(
            input_ids=ids,
            attention_mask=None if self.mask is None else self.mask[:, : self.place.visible],
            position_ids=position_ids,
            use_cache=True,
            **self.cache,
        )
        states: torch.Tensor = output[0]  # [batch, length, d]; by number, as a configuration may ask for tuples
        return states[:, -1]


class _Loop:
    """The steps after the prefill."""

    def __init__(
        self,
        rank: Rank,
        sequence: _Sequence,
        chooser: Chooser,
        tell: Callable[[], Sequence[float]] | None,
        after_step: AfterStep | None,
        stop_ids: frozenset[int],
        most: int,
    ) -> None:
        self.rank, self.sequence, self.chooser = rank, sequence, chooser
        self.tell = tell or tuple
        self.after_step = after_step
        self.stop_ids = stop_ids
        self.most = most
        self.ended = [False] * sequence.batch.size

    def run(self, normalised: torch.Tensor, started: float) -> None:
        """Choose the first tokens from the prefill's states, then step until all sequences have ended."""
        loaded = self.sequence.loaded
        # Not an attribute: its recording refers to this loop, and both must be freed when the run ends.
        run_step = runner_for(self.rank, loaded.backbone, self.sequence.place.column)
        try:
            self._steps(run_step, normalised, started)
        finally:
            run_step.forget()

    def _steps(self, run_step: Eager | Recorded, normalised: torch.Tensor, started: float) -> None:
        made = self.sequence.made
        made.outputs = [[] for _ in self.ended]
        self._prepare()
        choice = self.chooser.read(self._choose(normalised))
        first_at = time.perf_counter()
        made.prefill_s = first_at - started
        while True:
            self._take(choice)
            if self.after_step is not None:
                self.after_step(made.longest, choice.told)
            if choice.stop or all(self.ended) or made.longest == self.most:
                break
            choice = self._next(run_step)
        made.interrupted = choice.stop
        made.decode_s = time.perf_counter() - first_at

    def _next(self, run: Eager | Recorded) -> Choice:
        sequence = self.sequence
        sequence.move(1, run.boundary, run.recorded)
        if not run.calls_python:
            self._prepare()
        place = sequence.place
        chosen = run(partial(self._step, run.calls_python), place.visible, like_it=place.visible - place.start)
        sequence.moved()
        return self.chooser.read(chosen)

    def _step(self, calls_python: bool) -> torch.Tensor:
        normalised = self.sequence.step()
        if calls_python:  # as late as possible: what rank 0 sends now arrives with this token
            do(self._prepare)
        return self._choose(normalised)

    def _prepare(self) -> None:
        self.chooser.prepare(self.tell())

    def _choose(self, normalised: torch.Tensor) -> torch.Tensor:
        chosen = self.chooser(normalised)
        # The next step's input, without a detour through the host; sequences that have ended run on, their output ignored.
        self.sequence.tokens.copy_(chosen[: self.sequence.batch.size, None])
        return chosen

    def _take(self, choice: Choice) -> None:
        for number, token in enumerate(choice.tokens):
            if not self.ended[number]:
                self.sequence.made.outputs[number].append(token)
                self.rank.emit(("token", token, number))
                self.ended[number] = token in self.stop_ids
