"""Vectors of a session: learning them on the ranks, and finding them by the names a user gave them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import options
from .errors import LensError, warn
from .prompts import check_ids
from .provenance import now, versions
from .session import Model, OnEvent, Session
from .words import as_name, counted

if TYPE_CHECKING:
    from .steer.data import Items
    from .steer.term import SteeringTerm, Terms
    from .steer.train import Example, Learnt
    from .steer.vector import SteeringVector

COMMANDS = {
    "train": "Learn a direction from pairs and keep it under a name.",
    "list": "List the vectors, including those in variables.",
    "save": "Write a vector to a file.",
    "load": "Read a vector from a file and keep it under a name.",
    "drop": "Forget a vector; variables that hold it stay.",
    "eval": "How far a vector moves the answers to two-way questions, by α and layer.",
    "sites": "Where a direction is best read and added: learnt anew from pairs at each site and position.",
    "panel": "Sliders beside a generation that follows them.",
}
"""What each subcommand of ``%steer`` does; a vector cannot have its name. :mod:`lens_magic.steer_magics` has the same order."""

VECTOR_FILES = (".safetensors", ".gguf", ".npz")


def train(
    session: Session,
    pairs: Any,
    layers: str | int | Iterable[int] | None = None,
    site: str = "post_ln",
    position: str = "label",
    method: str = "mean_diff",
    name: str = "vector",
    on_event: OnEvent | None = None,
    some_layers: bool = False,
    chat: bool = False,
) -> SteeringVector:
    """See :func:`lens_magic.train_vector`.

    Args:
        some_layers: leave out layers without a direction, as long as at least one has one.
    """
    from .steer import data
    from .steer.train import examples_of, learn

    model = session.require_model()
    chosen = options.parse_layers(layers, model.layers)
    (read_at,) = options.parse_sites([site])
    check_choices(position, method)
    chat = options.flag("chat", chat)
    items = data.read(pairs)
    if position == "label" and items.texts:
        raise LensError(f"{len(items.texts)} of the pairs are texts, which have no label; position last or mean would do")
    examples, unread, shown = examples_of(model.tokenizer, items, position, model.context, chat)
    items = replace(items, rejected={**items.rejected, **unread})
    if not examples:
        raise LensError(f"of {len(items)} items none can be used: {data.left_out(items.rejected)}")
    for example in examples:
        check_ids(model, (*example.positive.ids, *example.negative.ids))
    _warn_of_first_tokens(examples)
    group = session.group
    with group.exclusive():
        answers = group.call(learn, examples, read_at, chosen, method, on_event=on_event)
    learnt = {layer: one for answer in answers for layer, one in answer.items()}
    if some_layers and not all(one.nothing for one in learnt.values()):
        learnt = {layer: one for layer, one in learnt.items() if not one.nothing}
    _require_directions(learnt, read_at, position)
    _warn_if_halves_disagree(learnt, read_at)
    return _made(model, items, examples, learnt, shown, chat, site=read_at, position=position, method=method, name=name)


def check_choices(position: str, method: str) -> None:
    """Check the position where a direction is read, and the method by which it is learnt.

    Raises:
        LensError: one of them is unknown.
    """
    from .steer.train import METHODS, POSITIONS

    options.choice("position", position, POSITIONS)
    options.choice("method", method, tuple(METHODS))


class NoDirection(LensError):
    """The two sides do not differ where they were read."""


def _require_directions(learnt: Mapping[int, Learnt], site: str, position: str) -> None:
    empty = sorted(layer for layer, one in learnt.items() if one.nothing)
    if empty:
        one = learnt[empty[0]]
        where = f"layer{'s' if len(empty) > 1 else ''} {','.join(map(str, empty))}"
        raise NoDirection(
            f"the direction at {site} of {where} has length {abs(one.norm):.2g} against states of {one.scale:.2g}: at position "
            f"{position!r} the two sides are the same, or cancel; another position, site or --layers would do"
        )


def _warn_of_first_tokens(examples: Sequence[Example]) -> None:
    """Tell of texts of which nothing but the sequence's first token can be read: trained models make a sink of its state."""
    first = sum(side.begin == 0 for example in examples for side in (example.positive, example.negative))
    if first:
        warn(
            f"{counted(first, 'text')} of one token, which begins the sequence: of its state trained models make a sink that "
            "is alike in all texts; longer ones would do"
        )


def _warn_if_halves_disagree(learnt: Mapping[int, Learnt], site: str) -> None:
    halves = {layer: learnt[layer].quality.halves for layer in sorted(learnt)}
    apart = {layer: cosine for layer, cosine in halves.items() if cosine is not None and cosine < 0}
    if apart:
        where = ", ".join(f"layer {layer} ({cosine:.3f})" for layer, cosine in apart.items())
        warn(
            f"two halves of the items give directions that point apart at {site} of {where}: there the items have none in "
            "common; another position, site or --layers would do"
        )


def _made(
    model: Model,
    items: Items,
    examples: list[Example],
    learnt: Mapping[int, Learnt],
    shown: list[str],
    chat: bool,
    **choices: Any,
) -> SteeringVector:
    from .steer.vector import Origin, SteeringVector, Training

    used = {example.item for example in examples}
    questions = sum(number < len(items.questions) for number in used)
    layers = sorted(learnt)
    return SteeringVector(
        directions={layer: learnt[layer].direction for layer in layers},
        norms={layer: learnt[layer].norm for layer in layers},
        quality={layer: learnt[layer].quality for layer in layers},
        origin=Origin(model.name, model.fingerprint or None, model.family, model.layers, model.dtype),
        training=Training(
            questions=questions,
            texts=len(used) - questions,
            digests=tuple(digest for number, digest in enumerate(items.digests) if number in used),
            rejected=items.rejected,
            labels=tuple(shown),
            chat=chat,
        ),
        versions=versions("torch", "transformers", *(("scikit-learn",) if choices["method"] == "logistic" else ())),
        created=now(),
        **choices,
    )


# -- by name ------------------------------------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """Check a name for a vector, and return it as Python would write a variable's.

    Raises:
        LensError: it is a subcommand's name, or not a plain word.
    """
    name = as_name(name)
    if name in COMMANDS:
        raise LensError(f"{name!r} is a command of %steer and cannot name a vector")
    if not re.fullmatch(r"[^\W\d][\w.-]*", name):
        raise LensError(f"{name!r} cannot name a vector; a letter, then letters, digits, _, - and . would do")
    return name


def find(session: Session, name: str, variables: Mapping[str, Any] | None = None) -> SteeringVector:
    """Find a vector by its name in ``%steer``, or by the name of a variable that holds one.

    Raises:
        LensError: there is none (the error lists those there are), or ``%steer`` and the variable hold different ones.
    """
    name, held = as_name(name), variables_with_vectors(variables or {})
    kept, own = session.vectors.get(name), held.get(name)
    if kept is not None and own is not None and not own.steers_as(kept):
        raise _kept_another(name, "vector")
    if found := kept or own:
        return found
    known = ", ".join(dict.fromkeys((*session.vectors, *held)))
    hint = f"those there are: {known}" if known else "%steer train NAME --pairs … makes one"
    if name in variables_with_terms(variables or {}):
        raise LensError(f"{name!r} is a steering term, made of vectors, and none itself; {hint}")
    raise LensError(f"there is no vector {name!r}; {hint}")


def _kept_another(name: str, held: str) -> LensError:
    return LensError(
        f"%steer keeps another vector {name!r} than the {held} in the variable; `%steer drop {name}` leaves the variable's"
    )


def parse_term(word: str) -> tuple[str, float]:
    """Split ``NAME[:ALPHA]`` into a vector's name and α, which is 1 if omitted.

    Raises:
        LensError: α is not a number.
    """
    name, colon, alpha = word.rpartition(":")
    if not colon:
        return word, 1.0
    try:
        return name, float(alpha)
    except ValueError:
        raise LensError(f"{word!r} is not understood: {alpha!r} is no number; NAME:1.5 would do") from None


def terms_of(
    session: Session, words: Sequence[str], variables: Mapping[str, Any] | None = None, **choices: Any
) -> list[SteeringTerm]:
    """Return the terms for several ``NAME[:ALPHA]``, where NAME may also be a vector's file, or a variable with terms.

    Args:
        choices: arguments of :meth:`SteeringVector.steer`, the same for all of them.

    Raises:
        LensError: there is no such vector, a choice is not understood, or there are choices for what is a term already.
    """
    if session.model is not None and choices.get("layers") is not None:  # a vector may not know what the last layer is
        choices["layers"] = options.parse_layers(choices["layers"], session.model.layers)
    sums = variables_with_terms(variables or {})
    terms: list[SteeringTerm] = []
    for name, alpha in [parse_term(word) for word in words]:
        if (made := sums.get(as_name(name))) is not None:
            if name in session.vectors:
                raise _kept_another(name, "term")
            if choices:
                made_with = " and ".join(choices)
                raise LensError(
                    f"{name!r} is a steering term and has its {made_with} already; here only a vector's can be chosen"
                )
            terms.extend(made if alpha == 1 else made * alpha)  # an ablation has no strength to multiply
        elif name.endswith(VECTOR_FILES) and name not in session.vectors:
            from .steer.files import load

            terms.append(load(name).steer(alpha, **choices))
        else:
            terms.append(find(session, name, variables).steer(alpha, **choices))
    return terms


def steering_terms(
    model: Model, steer: Any, prompts: Sequence[int], new: Sequence[int], asked: int | None = None
) -> tuple[SteeringTerm, ...]:
    """Return the terms of what a user gives as ``steer=``: a term, a vector (α = 1), or any number of them and of sums.

    Args:
        prompts: tokens of each prompt.
        new: for each prompt the most tokens that can follow it.
        asked: how many tokens schedules run over, if that is more than ``new`` because a run ended early.

    Raises:
        LensError: it is something else, does not fit the model or the batch, or would change nothing.
    """
    if steer is None:
        return ()
    from .steer.term import MadeFor, Terms

    several = options.listed(steer, ordered=False)
    given = Terms.of(steer if several is None else several)
    if not given:
        return ()
    from .steer.intervene import check

    check(given, MadeFor(model.family, model.layers, model.width))
    most, found = strongest(model), []
    for term in given:
        alphas, its = term.alphas(len(new)), term.check_sequences(len(new))
        parts = term.over_each(new if asked is None else [asked])
        parts[-1].check_effect(range(1 - max(prompts[at] for at in its), max(new[at] for at in its)), most)
        # With one prompt, its α is for every copy of it: comparisons run several copies in one batch.
        found += [replace(part, alpha=alphas[0], sequences=None) for part in parts] if len(new) == 1 else parts
    return tuple(found)


def strongest(model: Model) -> float:
    """Return the largest α that leaves finite numbers: its dtype has to hold it, and norms square it in float32."""
    import torch

    return min(float(torch.finfo(getattr(torch, model.dtype)).max), math.sqrt(torch.finfo(torch.float32).max) / 2)


def variables_with_vectors(variables: Mapping[str, Any]) -> dict[str, SteeringVector]:
    """Return the user's variables that hold a vector, which then has the variable's name."""
    if f"{__package__}.steer.vector" not in sys.modules:
        return {}
    from .steer.vector import SteeringVector

    return {name: value.named(name) for name, value in _own(variables) if isinstance(value, SteeringVector)}


def variables_with_terms(variables: Mapping[str, Any]) -> dict[str, Terms]:
    """Return the user's variables that hold a steering term, or a sum of them."""
    if f"{__package__}.steer.term" not in sys.modules:
        return {}
    from .steer.term import SteeringTerm, Terms

    return {name: Terms.of(value) for name, value in _own(variables) if isinstance(value, SteeringTerm | Terms)}


def _own(variables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield variables without ``_``, ``_12`` and the like, which are IPython's."""
    return ((name, value) for name, value in variables.items() if not name.startswith("_"))
