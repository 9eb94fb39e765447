"""Checks of what a user asks for, before anything is sent to the ranks."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from .errors import LensError
from .words import quoted

DEFAULT_RANKS = 4

ALPHAS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
"""The α of the paper (arXiv 2604.06483)."""

UNITS = ("absolute", "norm")
"""Of α in a sweep: the units of the hidden states, or the length of what was learnt at the layer."""

ABLATED_SITES = ("post_ln", "resid_pre", "attn_out", "resid_post")
"""The paper's post-LN, pre-LN, attention and residual."""

_LEAST_TEMPERATURE = 1e-6
_DIGITS = r"\d{1,18}"  # of thousands, Python makes no number


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


def listed(given: Any, ordered: bool = True) -> list[Any] | None:
    """Return what a list, an array, a generator or the like holds; None for all else, whose items are not what was meant.

    Those are the letters of a text, the numbers of bytes, the keys of a mapping and the columns of a table; a 0-d array is
    one number.

    Args:
        ordered: a set is no list either.
    """
    one = isinstance(given, str | bytes | bytearray | memoryview | Mapping) or (ordered and isinstance(given, Set))
    if one or hasattr(given, "iterrows") or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        return None
    return list(given)


def integers(what: str, given: Any) -> list[int]:
    """Return one or several integers (of Python, NumPy or torch) as a list of int.

    Raises:
        LensError: they are not integers; True and False, as a mask has them, are none.
    """
    several = listed(given, ordered=False)
    try:
        return [_index(value) for value in ([given] if several is None else several)]
    except TypeError:
        raise LensError(f"{what} {quoted(given)} are not integers") from None


def integer(what: str, given: Any) -> int:
    """Return an integer (of Python, NumPy or torch) as an int, which can be saved to files.

    Raises:
        LensError: it is not an integer.
    """
    try:
        return _index(given)
    except TypeError:
        raise LensError(f"{what} {quoted(given)} is not an integer") from None


def at_least_one(what: str, given: Any) -> int:
    """Return an integer of 1 or more, as :func:`integer` does.

    Raises:
        LensError: it is not an integer, or below 1.
    """
    if (found := integer(what, given)) < 1:
        raise LensError(f"{what} {found} is too few; 1 or more would do")
    return found


def _index(given: Any) -> int:
    found = int(operator.index(given))
    if "bool" in str(getattr(given, "dtype", type(given).__name__)) or found.bit_length() > 1024:
        raise TypeError  # neither a mask, nor what messages could not hold
    return found


def token_ids(what: str, given: Any, read: Callable[[str], int]) -> list[int]:
    """Return the tokens (of a basis: directions) that a user names by text or number, each once.

    Args:
        what: the argument, such as ``track``.
        given: one or several texts or numbers; a text may hold several, with commas, and ``id:42`` is a number.
        read: returns the number of a text.

    Raises:
        LensError: one of them is neither a text nor an integer, or ``read`` refuses it.
    """
    several = given.split(",") if isinstance(given, str) else listed(given, ordered=False)
    ids = []
    for item in [given] if several is None else several:
        if isinstance(item, str) and re.fullmatch(rf"id:{_DIGITS}", item.strip()):
            item = int(item.strip()[3:])
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
        raise LensError(f"{what} {quoted(given)} is not a number") from None


def flag(what: str, given: Any) -> bool:
    """Return True or False (of Python or NumPy, or as 0 or 1) as a bool; anything else may be meant for another argument.

    Raises:
        LensError: it is neither.
    """
    if not (isinstance(given, int) or type(given).__name__.startswith("bool")) or given not in (0, 1):
        raise LensError(f"{what} {quoted(given)} is neither True nor False")
    return bool(given)


def choice(what: str, given: Any, known: Sequence[str]) -> str:
    """Return one of the ``known`` words, itself: what equals it may be of a class that ranks do not know (an enumeration's).

    Raises:
        LensError: it is none of them.
    """
    if not isinstance(given, str) or given not in known:
        raise LensError(f"{what} {quoted(given)} is not one of {', '.join(known)}")
    return known[known.index(given)]


def _piece(piece: str, spec: str, layers: int) -> Sequence[int]:
    if re.fullmatch(rf"-?{_DIGITS}", piece):
        return [_layer(int(piece), layers)]
    if match := re.fullmatch(rf"({_DIGITS})-({_DIGITS}|)", piece):
        first = _layer(int(match[1]), layers)
        last = _layer(int(match[2]), layers) if match[2] else layers - 1
        if last < first:
            raise LensError(f"layers {piece!r} are reversed; {last}-{first} would do")
        return range(first, last + 1)
    if match := re.fullmatch(rf"(-?{_DIGITS}|):(-?{_DIGITS}|)(?::({_DIGITS}|))?", piece):
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
    raise LensError(f"layers {quoted(spec)} are not understood; 0-4, 5-, -1, 0,8,-1 or ::4 would do")


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
    several = [site.strip() for site in spec.split(",")] if isinstance(spec, str) else listed(spec, ordered=False)
    given = [choice("site", site, tuple(SITES)) for site in ([spec] if several is None else several)]
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
    return None if name is None else choice("dtype", dtype_name(name), ("float32", "bfloat16", "float16"))


def dtype_name(given: Any) -> Any:
    """Return a dtype of torch by its name, as libraries beside this one take either; anything else as it is."""
    return str(given).removeprefix("torch.") if type(given).__module__ == "torch" else given


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
