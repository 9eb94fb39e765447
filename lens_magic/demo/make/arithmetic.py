"""Sums and differences of small numbers, in digits and in words; a tenth of the couples is held out."""

from __future__ import annotations

import random

from lens_magic.demo.make.facts import CHAT, HeldOut
from lens_magic.demo.make.world import words

LIMIT = 12
_ONES = words("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen")
_ONES += words("seventeen eighteen nineteen")
_TENS = {20: "twenty", 30: "thirty", 40: "forty"}


def name(number: int) -> str:
    """The number's name, for 0 to 49."""
    if number < 20:
        return _ONES[number]
    tens, ones = _TENS[number - number % 10], number % 10
    return f"{tens}-{_ONES[ones]}" if ones else tens


def held_out(a: int, b: int) -> bool:
    """Whether the sum of this couple is kept from training, in either order, and the difference that undoes it."""
    low, high = sorted((a, b))
    return (low * 7 + high * 3) % 10 == 4


def _sum(rng: random.Random) -> tuple[int, int, int, str, str]:
    while True:
        a, b = rng.randint(0, LIMIT), rng.randint(0, LIMIT)
        if not held_out(a, b):
            break
    if rng.random() < 0.6:
        return a, b, a + b, "+", "plus"
    return a + b, a, b, "-", "minus"


def _line(rng: random.Random) -> str:
    a, b, c, sign, verb = _sum(rng)
    form = rng.randrange(6)
    if form < 2:
        return f"{a} {sign} {b} = {c}"
    if form == 2:
        return f"Q: What is {a} {sign} {b}? A: {c}"
    x, y, z = name(a), name(b), name(c)
    if form == 3:
        return f"{x.capitalize()} {verb} {y} is {z}."
    if form == 4:
        return f"Q: What is {x} {verb} {y}? A: {z}"
    return CHAT.format(question=f"What is {x} {verb} {y}?", answer=f"{x.capitalize()} {verb} {y} is {z}.")


def document(rng: random.Random) -> str:
    """A few lines of arithmetic."""
    return "\n".join(_line(rng) for _ in range(rng.choice((1, 1, 2, 4))))


def held_out_items() -> list[HeldOut]:
    """Held-out sums and differences."""
    couples = [(a, b) for a in range(LIMIT + 1) for b in range(LIMIT + 1) if held_out(a, b)]
    items = []
    for i, (a, b) in enumerate(couples):
        if i % 2 == 0:
            items.append(HeldOut("addition, unseen", f"{a} + {b} =", f" {a + b}"))
        else:
            items.append(HeldOut("subtraction, unseen", f"{a + b} - {a} =", f" {b}"))
    return items
