"""The same prompt unsteered and steered: one generation of both side by side, then what each thinks of either text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LensError
from ..reading import read_as
from ..writing import written_whole
from .term import Strength

if TYPE_CHECKING:
    from ..model.choose import Sampling
    from ..ranks.rank import Rank
    from .term import SteeringTerm

FORMAT = "lens-magic steered text 1"
LIVE = "live_strengths"
"""Where rank 0 keeps the function that says the strength of every term, while somebody may be moving it."""
_POSITIONS_AT_ONCE = 64


@dataclass(frozen=True)
class Side:
    """One of the two texts.

    Attributes:
        text, output_ids: as of a run: an end token is among the ids and not in the text.
        log_probs_unsteered, log_probs_steered: log p of each of its tokens in nats, under either model.
    """

    text: str
    output_ids: tuple[int, ...]
    log_probs_unsteered: tuple[float, ...] = ()
    log_probs_steered: tuple[float, ...] = ()

    @property
    def log_prob_change(self) -> tuple[float, ...]:
        """log p under the steered model less log p under the unsteered one, of each token, in nats."""
        return tuple(s - u for u, s in zip(self.log_probs_unsteered, self.log_probs_steered, strict=True))


@dataclass(frozen=True)
class SteeredText:
    """A prompt's continuation without and with steering.

    Attributes:
        prompt: what was given.
        unsteered, steered: the two continuations.
        token_texts: readable text of their tokens.
        steering: the terms, in words.
        timings, options, provenance: as of a run.
        alphas, clips: where they could be moved meanwhile: for each generated token, those of every term as it was chosen.
        interrupted: it was stopped by the user.
    """

    prompt: str
    unsteered: Side
    steered: Side
    token_texts: Mapping[int, str]
    steering: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    alphas: tuple[tuple[float, ...], ...] = ()
    clips: tuple[tuple[float | None, ...], ...] = ()
    interrupted: bool = False

    @property
    def first_difference(self) -> int | None:
        """Number of the first token in which the two differ (0 is the first generated); None where they are the same."""
        return first_difference(self.unsteered.output_ids, self.steered.output_ids)

    @property
    def log_prob_change(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """:attr:`Side.log_prob_change` of the unsteered text and of the steered one."""
        return self.unsteered.log_prob_change, self.steered.log_prob_change

    def save(self, path: str | Path) -> Path:
        """Write everything as JSON; :meth:`load` reads it.

        Raises:
            LensError: it cannot be written there.
        """
        record = {"format": FORMAT, **asdict(self), "token_texts": {str(i): text for i, text in self.token_texts.items()}}
        with written_whole(path) as partial:
            partial.write_text(json.dumps(record, ensure_ascii=True, indent=1), encoding="utf-8")
        return Path(path).expanduser()

    @classmethod
    def load(cls, path: str | Path) -> SteeredText:
        """Read what :meth:`save` wrote.

        Raises:
            LensError: there is no such file, or it holds something else.
        """
        source = Path(path).expanduser()
        if not source.is_file():
            raise LensError(f"there is no file {source}")
        with read_as("a steered text that lens-magic saved", source):
            record = json.loads(source.read_text(encoding="utf-8"))
            if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
                raise LensError(f"{path} is no steered text that lens-magic saved")
            for name in ("unsteered", "steered"):
                side = record[name]
                record[name] = Side(side.pop("text"), **{key: tuple(value) for key, value in side.items()})
            record["token_texts"] = {int(index): text for index, text in record["token_texts"].items()}
            record["steering"] = tuple(record["steering"])
            for name in ("alphas", "clips"):
                record[name] = tuple(tuple(step) for step in record.get(name, ()))
            return cls(**record)

    def __repr__(self) -> str:
        from ..view.steered import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from ..view.steered import as_html

        return as_html(self)


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first difference between two sequences; the end of the shorter is one."""
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return number
    return None if len(one) == len(other) else min(len(one), len(other))


# -- on the ranks -------------------------------------------------------------------------------------------------------


def run_compared(
    rank: Rank,
    prompt: tuple[int, ...],
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    terms: tuple[SteeringTerm, ...],
    live: bool = False,
) -> dict[str, Any]:
    """Generate after a prompt, unsteered and steered, as a batch of two. Collective.

    Args:
        live: the strength of every term may change while it runs: rank 0's store says under :data:`LIVE` what they are. No
            probabilities are compared then, as there is no one steered model.

    Returns:
        ``generation``; ``log_probs``, ``[text][condition][token]``; ``strengths``, of each token, where live.
    """
    from ..model.generate import generate
    from ..model.load import loaded_on
    from .intervene import Steering

    loaded = loaded_on(rank)
    steering = Steering(loaded, [term.for_sequences(1) for term in terms], 2, movable=live)
    in_effect, strengths = [Strength(term.alphas(1)[0], term.clip) for term in terms], list[tuple[Strength, ...]]()
    current: Callable[[], Sequence[Strength]] = rank.store.get(LIVE) or (lambda: in_effect)

    def say() -> list[float]:
        return [number for alpha, clip in current() for number in (alpha, math.inf if clip is None else clip)]

    def take(done: int, told: Sequence[float]) -> None:
        strengths.append(tuple(in_effect))
        pairs = zip(told[::2], told[1::2], strict=True)
        in_effect[:] = [Strength(alpha, clip if math.isfinite(clip) else None) for alpha, clip in pairs]
        steering.move(in_effect)

    tell, after_step = (say, take) if live else (None, None)
    made = generate(
        rank,
        loaded,
        (prompt, prompt),
        max_new_tokens,
        sampling,
        stop_ids,
        [steering],
        tell=tell,
        after_step=after_step,
    )
    if made.interrupted:
        rank.acknowledge_stop()
    try:
        log_probs = [] if live else _log_probs(rank, loaded, prompt, made.outputs, terms)
    except KeyboardInterrupt:  # on all ranks alike; the texts are there
        log_probs, made.interrupted = [], True
    return {"generation": made, "log_probs": log_probs, "strengths": strengths}


def _log_probs(
    rank: Rank, loaded: Any, prompt: Sequence[int], texts: Sequence[Sequence[int]], terms: Sequence[SteeringTerm]
) -> list[list[list[float]]]:
    """log p of each token of both texts under both models: one forward along four sequences. Collective."""
    import torch

    from ..lens.capture import Plan, Trajectories
    from ..lens.projector import PLAIN, Projector
    from ..model.generate import generate
    from .intervene import Steering

    last = loaded.layers - 1
    longest = max(len(text) for text in texts)
    plan = Plan(("resid_post",), (last,), len(prompt) - 1, longest, batch=4)
    trajectories = Trajectories(rank, loaded, plan)
    steering = Steering(loaded, [term.for_sequences(1, 3) for term in terms], 4)
    walks = [texts[0], texts[0], texts[1], texts[1]]
    generate(rank, loaded, [prompt] * 4, longest, visitors=[steering, trajectories], forced=walks)
    projector = Projector(loaded, PLAIN, None)
    found: list[list[float]] = []
    with torch.inference_mode():
        for number, walk in enumerate(walks):
            values: list[float] = []
            for begin in range(0, len(walk), _POSITIONS_AT_ONCE):
                end = min(len(walk), begin + _POSITIONS_AT_ONCE)
                states = trajectories.share(rank, trajectories.output, begin, end, number).to(loaded.dtype)
                targets = torch.tensor(walk[begin:end], device=loaded.device)
                values += token_log_probs(rank, projector.output(states), targets, loaded.head.offset).tolist()
            found.append(values)
    return [found[:2], found[2:]]


def token_log_probs(rank: Rank, logits: Any, targets: Any, offset: int) -> Any:
    """log p of tokens from logits ``[positions, rows]`` that are spread over the ranks: ``[positions]``. Collective.

    Args:
        targets: vocabulary indices, ``[positions]``.
        offset: the vocabulary index of this rank's first row.
    """
    import torch

    local = targets - offset
    here = (local >= 0) & (local < logits.shape[1])
    own = logits.gather(1, local.clamp(0, logits.shape[1] - 1)[:, None])[:, 0].double()
    target = torch.where(here, own, -torch.inf)
    share = torch.stack([target, logits.double().logsumexp(-1)])  # [2, positions]
    shared = rank.all_gather(share) if rank.size > 1 else share[None]
    return shared[:, 0].amax(0) - shared[:, 1].logsumexp(0)
