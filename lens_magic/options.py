"""Checks of what a user asks for, before anything is sent to the ranks."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from .errors import LensError

DEFAULT_RANKS = 4
_LEAST_TEMPERATURE = 1e-6


def default_ranks() -> int:
    """Return the number of ranks of a Lens kernel: ``LENS_RANKS``, else ``LENS_DEFAULT_RANKS``, else 4.

    Raises:
        LensError: a variable is set to something that is not a number of ranks.
    """
    for name in ("LENS_RANKS", "LENS_DEFAULT_RANKS"):
        if value := os.environ.get(name):
            return check_ranks(value, name)
    return DEFAULT_RANKS


def check_ranks(value: str | int, name: str = "--ranks") -> int:
    """Check and return a number of ranks, at least 1."""
    try:
        ranks = int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        ranks = 0
    if ranks < 1:
        raise LensError(f"{name} {value!r} is not a number of ranks; 1 or more would do")
    return ranks


def model_name(given: Any) -> str:
    """Return the name to load a model by, as text: a folder (str or path), a hub id, or "demo".

    Raises:
        LensError: it is neither text nor a path.
    """
    if not isinstance(given, (str, os.PathLike)):
        raise LensError(
            f'a model is loaded by a folder, a hub id or "demo", not {type(given).__name__}; attach takes one in memory'
        )
    return str(given)


def check_in_memory(model: Any, tokenizer: Any) -> None:
    """Check that these are a model and a tokenizer of transformers.

    Raises:
        LensError: one is something else.
    """
    for what, given, has in (
        ("model", getattr(model, "config", model), "model_type"),
        ("tokenizer", tokenizer, "apply_chat_template"),
    ):
        if not hasattr(given, has):
            raise LensError(
                f"attach takes a model and its tokenizer, both of transformers; the {what} is {type(given).__name__}"
            )


def parse_layers(spec: str | int | Iterable[int] | None, layers: int) -> tuple[int, ...]:
    """Return the layers in ascending order, each once.

    Args:
        spec: None (all), numbers, or text: ``0-4`` (inclusive), ``5-``, ``-1`` (the last), ``0,8,-1``, ``::4``.
        layers: how many the model has.

    Raises:
        LensError: out of range, reversed, or not understood.
    """
    if spec is None:
        return tuple(range(layers))
    if isinstance(spec, str):
        chosen = [layer for piece in spec.split(",") for layer in _piece(piece.strip(), spec, layers)]
    else:
        chosen = [_layer(layer, layers) for layer in integers("layers", spec)]
    if not chosen:
        raise LensError("no layers were named; 0-4, 5-, -1, 0,8,-1 or ::4 would do")
    return tuple(sorted(set(chosen)))


def integers(what: str, given: Any) -> list[int]:
    """Return one or several integers (of Python, NumPy or torch) as a list of int.

    Raises:
        LensError: they are not integers.
    """
    try:
        return [operator.index(value) for value in (given if isinstance(given, Iterable) else [given])]
    except TypeError:
        raise LensError(f"{what} {given!r} are not integers") from None


def integer(what: str, given: Any) -> int:
    """Return an integer (of Python, NumPy or torch) as an int, which can be saved to files.

    Raises:
        LensError: it is not an integer.
    """
    try:
        return int(operator.index(given))
    except TypeError:
        raise LensError(f"{what} {given!r} is not an integer") from None


def token_ids(what: str, given: Any, read: Callable[[str], int]) -> list[int]:
    """Return the tokens (of a basis: directions) that a user names by text or number, each once.

    Args:
        what: the argument, such as ``track``.
        given: one or several texts or numbers; a text may hold several, with commas, and ``id:42`` is a number.
        read: returns the number of a text.

    Raises:
        LensError: one of them is neither a text nor an integer, or ``read`` refuses it.
    """
    items: Iterable[Any] = given.split(",") if isinstance(given, str) else [given]
    if not isinstance(given, str | bytes | bytearray | int) and isinstance(given, Iterable):
        with suppress(TypeError):  # an array without dimensions is one number
            items = list(given)
    ids = []
    for item in items:
        if isinstance(item, str) and (stated := item.strip()).startswith("id:") and stated[3:].isdecimal():
            item = int(stated[3:])
        if isinstance(item, bool) or not (isinstance(item, str) or hasattr(item, "__index__")):
            raise LensError(f"{what}= takes texts or ids of tokens, not {type(item).__name__}")
        ids.append(read(item) if isinstance(item, str) else integer(f"{what}=", item))
    return list(dict.fromkeys(ids))


def generator_seed(seed: int) -> int:
    """Return what to seed torch's generator with, which on a CPU takes the lower 32 bits alone: the others are mixed in."""
    if -(2**63) <= seed < 2**32:
        return seed
    seed %= 2**64
    return (seed ^ (seed >> 32)) % 2**32


def number(what: str, given: Any) -> float:
    """Return a number (of Python, NumPy or torch) as a float, which can be saved to files.

    Raises:
        LensError: it is not a number.
    """
    try:
        return float(given + 0.0)  # float() alone would also parse text
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise LensError(f"{what} {given!r} is not a number") from None


def flag(what: str, given: Any) -> bool:
    """Return True or False (of Python or NumPy, or as 0 or 1) as a bool; anything else may be meant for another argument.

    Raises:
        LensError: it is neither.
    """
    if not (isinstance(given, int) or type(given).__name__.startswith("bool")) or given not in (0, 1):
        raise LensError(f"{what} {given!r} is neither True nor False")
    return bool(given)


def _piece(piece: str, spec: str, layers: int) -> Sequence[int]:
    if re.fullmatch(r"-?\d+", piece):
        return [_layer(int(piece), layers)]
    if match := re.fullmatch(r"(\d+)-(\d*)", piece):
        first = _layer(int(match[1]), layers)
        last = _layer(int(match[2]), layers) if match[2] else layers - 1
        if last < first:
            raise LensError(f"layers {piece!r} are reversed; {last}-{first} would do")
        return range(first, last + 1)
    if match := re.fullmatch(r"(-?\d+|):(-?\d+|)(?::(\d*))?", piece):
        start, stop, step = (int(text) if text else None for text in match.groups())
        if step == 0:
            raise LensError(f"layers {piece!r} have a step of 0")
        for bound in (start, stop):
            if bound is not None and not -layers <= bound <= layers:
                raise LensError(f"layers {piece!r} are out of range; the model has {layers}: 0 to {layers - 1}")
        found = range(layers)[slice(start, stop, step)]
        if not found:
            raise LensError(f"layers {piece!r} are none of the model's {layers}")
        return found
    raise LensError(f"layers {spec!r} are not understood; 0-4, 5-, -1, 0,8,-1 or ::4 would do")


def _layer(layer: int, layers: int) -> int:
    if not -layers <= layer < layers:
        raise LensError(f"layer {layer} is out of range; the model has {layers}: 0 to {layers - 1}, or -1 for the last")
    return layer % layers


def parse_sites(spec: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the sites to capture, each once, in the order given.

    Raises:
        LensError: a site is unknown, or none is named.
    """
    from .model.anatomy import DEFAULT_SITES, SITES

    if spec is None:
        return DEFAULT_SITES
    if not isinstance(spec, Iterable):
        raise LensError(f"site {spec!r} is not one of {', '.join(SITES)}")
    given = [site.strip() for site in spec.split(",")] if isinstance(spec, str) else list(spec)
    for site in given:
        if site not in SITES:
            raise LensError(f"site {site!r} is not one of {', '.join(SITES)}")
    if not given:
        raise LensError(f"no site was named; {', '.join(SITES)} are there")
    return tuple(dict.fromkeys(given))


def check_top_k(top_k: int, vocabulary: int, directions: int = 0) -> None:
    """Refuse a number of candidates that no vocabulary, or basis of so many directions, has.

    Raises:
        LensError: it is out of range.
    """
    if not 1 <= top_k <= max(vocabulary, directions):
        whole = f"{directions} (the basis)" if directions > vocabulary else f"{vocabulary} (the vocabulary)"
        raise LensError(f"top-k {top_k} is out of range; 1 to {whole} would do")


def check_dtype(name: str | None) -> str | None:
    """Check and return the name of a type that states can be kept in, or None for the model's own.

    Raises:
        LensError: it is not such a type.
    """
    known = ("float32", "bfloat16", "float16")
    if name is not None and name not in known:
        raise LensError(f"dtype {name!r} is not one of {', '.join(known)}")
    return name


def check_sampling(temperature: float, top_p: float, seed: int = 0) -> tuple[float, float, int]:
    """Check a temperature (0 or more), a top-p in (0, 1] and a seed of 64 bits; return them as Python numbers.

    Raises:
        LensError: one of them is out of range.
    """
    temperature, top_p = number("temperature", temperature), number("top-p", top_p)
    seed = integer("seed", seed)
    if not -(2**63) <= seed < 2**64:
        raise LensError(f"seed {seed} has more than 64 bits")
    if not 0 <= temperature < float("inf"):
        raise LensError(f"temperature {temperature} is not 0 (greedy) or a positive number")
    if 0 < temperature < _LEAST_TEMPERATURE:  # logits divided by it would not be finite
        raise LensError(f"temperature {temperature} is below {_LEAST_TEMPERATURE}; 0 is greedy")
    if not 0 < top_p <= 1:
        raise LensError(f"top-p {top_p} is not above 0 and at most 1")
    return temperature, top_p, seed
