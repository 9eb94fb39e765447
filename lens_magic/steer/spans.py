"""Where and when a term acts: positions, spans of them, steps and schedules, as users write them and as terms hold them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..errors import LensError
from ..options import integers, listed, number
from ..words import quoted

NAMED_POSITIONS = ("all", "prompt", "generated", "last")

Span = tuple[int | None, int | None]
Schedule = Callable[[int], float] | Sequence[float] | str

_FACTOR = r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?"
_ALPHA = re.compile(rf"(?<= α=)(?:{_FACTOR}|\({_FACTOR}(?:, {_FACTOR})*,?\))")
_LAYERS = re.compile(r" of layer (\d+(?:,\d+)+)(?=;|$)")
_FACTORS = re.compile(rf"(?<=; schedule ){_FACTOR}(?: {_FACTOR})*(?=;|$)")
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda steps, step: 1.0,
    "linear": lambda steps, step: 1 - step / steps,
    "on/off": lambda steps, step: float(step % 2 == 0),
}
"""The schedules that have names: each gives the factor, among so many generated tokens, at one of them."""
_SHOWN = 6  # factors that a caption writes out


def check_positions(positions: Any) -> None:
    """Check a term's positions.

    Raises:
        LensError: they are not understood, or empty.
    """
    if isinstance(positions, str):
        if positions not in NAMED_POSITIONS:
            raise LensError(f"positions {quoted(positions)} are not understood; {', '.join(NAMED_POSITIONS)} or A:B would do")
    elif isinstance(positions, tuple):
        _check_span("positions", positions)
    elif not (isinstance(positions, frozenset) and all(isinstance(p, int) for p in positions)):
        raise LensError(
            f"positions {quoted(positions)} are not understood; {', '.join(NAMED_POSITIONS)}, (A, B) or a set would do"
        )
    elif not positions:
        raise LensError("positions are an empty set, which would steer nothing")


def parse_positions(given: Any) -> Any:
    """Return a user's positions as a term takes them: text such as ``-3:5``, a span, or any other iterable of positions p."""
    if isinstance(given, tuple) or (isinstance(given, str) and ":" in given):
        return parse_span("positions", given)
    several = listed(given, ordered=False)
    return given if several is None else frozenset(integers("positions", several))


def parse_steps(given: Any) -> Any:
    """Return a user's steps (generated tokens) as a term takes them, which is always a span."""
    return parse_span("steps", given) if isinstance(given, str | tuple | list) else given


def describe_positions(positions: Any) -> str | list[int]:
    """Return a term's positions for a record: a name or ``A:B`` as text, a set as a list."""
    if isinstance(positions, tuple):
        return ":".join("" if bound is None else str(bound) for bound in positions)
    return positions if isinstance(positions, str) else sorted(positions)


def parse_span(what: str, given: str | Sequence[Any]) -> Span:
    """Read a half-open span: ``A:B`` with either end optional, or two numbers (NumPy's too) of which either can be None.

    Raises:
        LensError: it is not a span.
    """
    if not isinstance(given, str):
        span = tuple(bound if bound is None or listed(bound) is not None else integers(what, bound)[0] for bound in given)
        _check_span(what, span)
        return span  # type: ignore[return-value]
    parts = given.split(":")
    try:
        begin, end = (int(part) if part.strip() else None for part in parts)
    except ValueError:
        raise LensError(f"{what} {quoted(given)} are not understood; A:B would do, such as 0:8") from None
    _check_span(what, (begin, end))
    return begin, end


def parse_schedule(schedule: Schedule | None) -> Schedule | None:
    """Return a user's schedule as a term takes it, checked as far as possible without the number of tokens.

    Raises:
        LensError: as for :func:`tabulate`.
    """
    if schedule is None or (isinstance(schedule, str) and schedule == "constant"):
        return None
    at_first = tabulate(schedule, 1)
    return schedule if isinstance(schedule, str) or callable(schedule) else at_first


def tabulate(schedule: Schedule, steps: int) -> tuple[float, ...]:
    """Return a schedule as factors at generated tokens 0 … steps − 1; factors are returned as they are.

    Args:
        schedule: a function of the generated token's number, factors, or "constant", "linear" (to 0 at the end) or
            "on/off" (every other token).

    Raises:
        LensError: it is none of these, is empty, or gives something that is not a number.
    """
    steps = max(1, steps)
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise LensError(f"schedule {schedule!r} is not one of {', '.join(SCHEDULES)}; a function of the step would do too")
        schedule = partial(SCHEDULES[schedule], steps)
    try:
        given = [schedule(step) for step in range(steps)] if callable(schedule) else listed(schedule)
        if given is None:
            raise LensError(f"{quoted(schedule)} is no list of factors")
        values = tuple(number("factor", factor) for factor in given)
    except (TypeError, ArithmeticError, LensError) as error:
        raise LensError(f"the schedule gives something that is not a number ({error})") from None
    if not values:
        raise LensError("the schedule is empty; a factor for each generated token would do")
    return values


def in_short(told: str) -> str:
    """Return a term's words for a caption, which the record has with all digits and layers.

    Numbers have few digits, of many of a schedule's factors there are only the first and the last, and layers that follow one
    another are a range.
    """
    rounded = _ALPHA.sub(lambda alpha: re.sub(_FACTOR, _rounded, alpha[0]), told)
    return _FACTORS.sub(_few, _LAYERS.sub(_layers, rounded))


def _rounded(number: re.Match[str]) -> str:
    short = f"{float(number[0]):.4g}"
    return number[0] if float(short) == float(number[0]) else short


def _layers(found: re.Match[str]) -> str:
    layers = [int(layer) for layer in found[1].split(",")]
    first, last = layers[0], layers[-1]
    follow = len(layers) > 2 and layers == list(range(first, last + 1))
    return f" of layers {f'{first}–{last}' if follow else ', '.join(map(str, layers))}"


def _few(schedule: re.Match[str]) -> str:
    factors = [f"{float(factor):.3g}" for factor in schedule[0].split()]
    return " ".join(factors if len(factors) <= _SHOWN else [*factors[: _SHOWN - 2], "…", factors[-1]])


def check_steps(steps: Any) -> None:
    """Check a term's steps.

    Raises:
        LensError: they are not a span, or hold no generated token.
    """
    _check_span("steps", steps)
    if steps[1] is not None and steps[1] <= 0:
        raise LensError(f"steps {describe_positions(steps)} would steer nothing; generated tokens count from 0")


def _check_span(what: str, span: Any) -> None:
    if not isinstance(span, tuple) or len(span) != 2 or not all(bound is None or isinstance(bound, int) for bound in span):
        raise LensError(f"{what} {quoted(span)} are not a span; (A, B) would do")
    begin, end = span
    if begin is not None and end is not None and end <= begin:
        raise LensError(f"{what} {begin}:{end} are empty; the second number should be larger")


def within(number: int, span: Span) -> bool:
    """Whether a half-open span holds a number."""
    begin, end = span
    return (begin is None or number >= begin) and (end is None or number < end)
