"""A few questions and pairs of texts, awkward in length, that the steering tests share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lens_magic.steer.term import SteeringTerm

STEMS = [
    ("Is the lamp near?", "It is far away from here, I am afraid.", "It is."),
    ("What bends the light? Look at the edge of the image, fringed with colour.", "A lens.", "The paper itself, I say."),
    ("Who read the letters?", "She did", "Nobody at all"),
    ("Two and two?", "4", "10, and then some more: 1999"),
    ("What gathers the light that leaves a lamp, and bends it to a point?", "yes", "no"),
]
TEXTS = [
    ("A lens gathers the light", "A lamp"),
    ("She read it", "She read the letters through it: first the capitals, then the small print"),
    ("Grind the glass", "Grind the image a little thinner"),
    ("What is the answer?", "Où est la lumière ?"),
]


def asked(stem: str, first: str, second: str) -> str:
    return f"{stem}\n\nChoices:\n (A) {first}\n (B) {second}\n\nAnswer:"


def questions(stems: Sequence[tuple[str, str, str]] = STEMS) -> list[dict[str, str]]:
    """The matching answer is always the first text of a stem; it stands at (A) or (B) by turns."""
    found = []
    for number, (stem, yes, no) in enumerate(stems):
        text = asked(stem, yes, no) if number % 2 else asked(stem, no, yes)
        ours, theirs = (" (A)", " (B)") if number % 2 else (" (B)", " (A)")
        found.append({"question": text, "answer_matching_behavior": ours, "answer_not_matching_behavior": theirs})
    return found


def pairs() -> list[dict[str, str]]:
    return [{"positive": positive, "negative": negative} for positive, negative in TEXTS]


def changing(width: int) -> tuple[SteeringTerm, ...]:
    """Terms for a batch of two whose strength changes from step to step, so within what is recorded."""
    direction = torch.nn.functional.normalize(torch.arange(width).float().sin(), dim=0)
    common = {"directions": {1: direction}, "site": "post_ln"}
    return (
        SteeringTerm("fading", alpha=4.0, decay=3.0, clip=0.2, **common),
        SteeringTerm("late", alpha=(2.0, -3.0), steps=(5, 20), operator="set", **common),
    )
