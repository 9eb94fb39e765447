"""A comparison on every rank: generate unsteered and steered as one batch, then score both texts under both models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..model.choose import Sampling
from ..model.generate import generate
from ..model.head import HeadShard, log_sum_exp
from ..model.load import Loaded, loaded_on
from ..ranks.rank import Rank
from ..ranks.store import Slot
from ..steer.intervene import Steering
from ..steer.term import SteeringTerm, Strength
from .capture import CapturePlan, Trajectories
from .projector import PLAIN, Projector

LIVE = Slot[Callable[[], Sequence[Strength]] | None]("live strengths")
"""On rank 0, the function that returns every term's current strength, while these can be moved."""
_POSITIONS_AT_ONCE = 64


def run_compared(
    rank: Rank,
    prompt: tuple[int, ...],
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    terms: tuple[SteeringTerm, ...],
    live: bool = False,
) -> dict[str, Any]:
    """Generate from a prompt unsteered and steered, as a batch of two. Collective.

    Args:
        live: the strength of every term can change during the generation; the function in :data:`LIVE` returns it. No
            probabilities are compared then, because there is no single steered model.

    Returns:
        ``generation``; ``log_probs``, ``[text][condition][token]``; ``strengths`` of each token, if live.
    """
    loaded = loaded_on(rank)
    steering = Steering(loaded, [term.for_sequences(1) for term in terms], 2, movable=live)
    in_effect, strengths = [Strength(term.alphas(1)[0], term.clip) for term in terms], list[tuple[Strength, ...]]()
    current = rank.store.get(LIVE) or (lambda: in_effect)

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
    except KeyboardInterrupt:  # on all ranks alike; the texts are kept
        log_probs, made.interrupted = [], True
    return {"generation": made, "log_probs": log_probs, "strengths": strengths}


def _log_probs(
    rank: Rank, loaded: Loaded, prompt: Sequence[int], texts: Sequence[Sequence[int]], terms: Sequence[SteeringTerm]
) -> list[list[list[float]]]:
    """Return log p of each token of both texts under both models, from one forward over four sequences. Collective."""
    last = loaded.layers - 1
    longest = max(len(text) for text in texts)
    plan = CapturePlan(("resid_post",), (last,), len(prompt) - 1, longest, batch=4)
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
                values += token_log_probs(rank, loaded.head, projector.output(states), targets).tolist()
            found.append(values)
    return [found[:2], found[2:]]


def token_log_probs(rank: Rank, head: HeadShard, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return log p of tokens ``[positions]``, float64, from this rank's logits ``[positions, rows]``. Collective."""
    return head.logits_at(rank, logits, targets[:, None])[:, 0].double() - log_sum_exp(rank, logits.double())
