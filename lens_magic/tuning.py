"""Tuned lenses: check what to train on, and learn one from texts on the ranks."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from . import options
from .errors import LensError
from .prompts import check_ids
from .provenance import now, versions
from .rooms import Room, room_of_rank
from .session import Model, OnEvent, Session
from .words import quoted, size

if TYPE_CHECKING:
    from .lens.translators import TunedLens

PIECE = 512
"""Longer texts are cut into pieces of this many tokens."""

_BYTES_A_WEIGHT = 16  # float32: translator, gradient and both of Adam's moments
_BYTES_A_STATE = 8  # float32: as read, and put together
_HIGHEST_RATE = 1e30  # Adam divides it by 1 − β₁, which float32 has to hold


def train_tuned_lens(
    session: Session,
    texts: Iterable[str],
    steps: int = 250,
    tokens_per_step: int = 1024,
    learning_rate: float = 1e-3,
    held_out: float = 0.1,
    seed: int = 0,
    on_event: OnEvent | None = None,
) -> TunedLens:
    """See :func:`lens_magic.train_tuned_lens`."""
    import torch

    from .lens.translators import TunedLens
    from .lens.tune import TrainingRequest, train

    model = session.require_model()
    steps = options.at_least_one("steps", steps)
    tokens_per_step = options.at_least_one("tokens_per_step", tokens_per_step)
    learning_rate, held_out, seed = _checked(learning_rate, held_out, seed)
    learn, measure = _pieces(model, texts, held_out, seed)
    request = TrainingRequest(learn, steps, tokens_per_step, seed, _in_order(measure, tokens_per_step), learning_rate)
    group = session.group
    with group.exclusive() as outcome:
        _require_memory(group.call(room_of_rank), model, tokens_per_step)
        answers = group.call(train, request, on_event=on_event)
        whole = {
            name: {index: v for answer in answers for index, v in answer[name].items()} for name in answers[0] if name != "done"
        }
        layers = range(model.layers)
        lens = TunedLens(
            [torch.from_numpy(whole["weights"][index]) for index in layers],
            [torch.from_numpy(whole["biases"][index]) for index in layers],
            model=model.name,
            fingerprint=model.fingerprint,
            divergences={
                name: [whole[when][index] for index in layers]
                for name, when in (("logit_lens", "before"), ("tuned_lens", "after"))
                if whole["after"]
            },
            provenance={
                **versions(),
                "created": now(),
                "dtype": model.dtype,
                "steps": answers[0]["done"],
                "steps_asked": steps,
                "tokens_per_step": tokens_per_step,
                "learning_rate": learning_rate,
                "seed": seed,
                "tokens": sum(map(len, learn)),
                "held_out_tokens": sum(map(len, measure)),
            },
        )
        return outcome.keep(lens, answers[0]["done"] < steps)


def _require_memory(rooms: Sequence[Room], model: Model, tokens_per_step: int) -> None:
    """Refuse to train if a rank lacks the memory for its share of the layers, or for their states at a step's tokens."""
    own = -(-model.layers // len(rooms))
    needed = _BYTES_A_WEIGHT * model.width * (model.width + 1) * own
    free = min(room.free for room in rooms)
    if needed > free:
        raise LensError(
            f"training a tuned lens needs {size(needed)} on a rank (translators, gradients, Adam's moments), where "
            f"{size(free)} is free; more ranks would do"
        )
    a_token = _BYTES_A_STATE * model.width * (own + 1)  # the last block's output too
    if (states := a_token * tokens_per_step) > free - needed:
        most = max(1, (free - needed) // a_token)
        raise LensError(
            f"training on {tokens_per_step:,} tokens a step needs {size(needed + states)} on a rank (translators, states), "
            f"where {size(free)} is free; tokens_per_step of at most {most:,} would do"
        )


def _checked(learning_rate: float, held_out: float, seed: int) -> tuple[float, float, int]:
    """Check these and return them as Python numbers, which can be saved to files."""
    learning_rate, held_out = options.number("learning_rate", learning_rate), options.number("held_out", held_out)
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise LensError(f"learning_rate {learning_rate} is not a positive number")
    if learning_rate > _HIGHEST_RATE:
        raise LensError(f"learning_rate {learning_rate} is more than float32 can train with; 1e-3 would do")
    if not 0 <= held_out < 1:
        raise LensError(f"held_out {held_out} is not a share of the texts; 0 to below 1 would do")
    return learning_rate, held_out, options.integer("seed", seed)


def _pieces(model: Model, texts: Iterable[str], held_out: float, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return pieces of tokens to learn from, and to measure on; a text is used whole for one or the other."""
    from .model.tokens import encode

    given = options.listed(texts, ordered=False)
    if given is None or not all(isinstance(text, str) for text in given):
        raise LensError(f"texts should be several texts: a list of str, not {quoted(texts)}")
    longest = min(PIECE, model.context)
    encoded = [ids for ids in (encode(model.tokenizer, text) for text in given if text) if ids]
    if not encoded:
        raise LensError("there are no texts to train on")
    for ids in encoded:
        check_ids(model, ids)
    random.Random(seed).shuffle(encoded)  # noqa: S311 - the order is no secret
    measured = min(round(held_out * len(encoded)), len(encoded) - 1)
    parts = [
        [ids[at : at + longest] for ids in some for at in range(0, len(ids), longest)]
        for some in (encoded[measured:], encoded[:measured])
    ]
    return parts[0], parts[1]


def _in_order(pieces: Sequence[list[int]], tokens: int) -> list[list[list[int]]]:
    """Return all pieces once, in batches of about ``tokens`` tokens."""
    batches: list[list[list[int]]] = []
    full = tokens
    for piece in pieces:
        if full >= tokens:
            batches.append([])
            full = 0
        batches[-1].append(piece)
        full += len(piece)
    return batches
