"""Steerability: how far a direction moves the answers to two-way questions that it was not learnt from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from . import options, vectors
from .errors import Interrupted, LensError, warn
from .options import ABLATED_SITES, ALPHAS, UNITS
from .prompts import check_ids
from .provenance import provenance
from .rooms import Room, room_of_rank
from .session import Model, OnEvent, Session
from .steer import data as items_of
from .steer import labels
from .steer.ablation import SiteAblation
from .steer.layer_types import check_layer_type
from .steer.measure import Propensities, Sweep, measure
from .steer.report import SteerabilityReport
from .steer.spans import check_positions, describe_positions, parse_positions
from .steer.term import WEAK, SteeringTerm
from .steer.train import POSITIONS
from .steer.vector import SteeringVector
from .words import counted, quoted, size

_NAMED = 3  # layers; of more the first and the last are
_APART = 4  # times as long as another: what moves answers at one of them ruins them at the other, or does nothing


def evaluate(
    session: Session,
    vector: SteeringVector,
    data: Any,
    alphas: str | Sequence[float] = ALPHAS,
    layers: str | int | Iterable[int] | None = None,
    site: str | None = None,
    reuse_layer: int | None = None,
    positions: Any = "all",
    random_directions: int = 1,
    seed: int = 0,
    on_event: OnEvent | None = None,
    chat: bool | None = None,
    unit: str = UNITS[0],
) -> SteerabilityReport:
    """See :func:`lens_magic.evaluate`."""
    model = session.require_model()
    if not isinstance(vector, SteeringVector):
        raise LensError(f"evaluate takes a SteeringVector (its α are alphas=), not {type(vector).__name__}")
    vector.check_fits(model.family, model.layers, model.width)
    steps, unit = check_alphas(alphas), options.choice("unit", unit, UNITS)
    (site,) = options.parse_sites([vector.site if site is None else site])
    if site == vector.site:
        check_layer_type(vector.name, vector.origin.layer_type, model.family)
    positions = parse_positions(positions)
    check_positions(positions)
    seed, random_directions = options.integer("seed", seed), options.at_least_one("random_directions", random_directions)
    if reuse_layer is not None:
        (reuse_layer,) = options.parse_layers(
            options.integer("reuse_layer", reuse_layer), model.layers
        )  # -1 is the last, as everywhere
    chat = vector.training.chat if chat is None else options.flag("chat", chat)
    directions = _directions(model, vector, layers, reuse_layer)
    given = items_of.read(data, "questions")
    held_out = given.without(vector.training.digests)
    if not held_out.questions:
        raise LensError(
            f"all {len(given)} questions are among those the vector was trained on; questions it has not seen would do"
        )
    prompts = _prompts(model, held_out.questions, chat)
    longest = max(len(prompt.prefix_ids) for prompt in prompts)
    norms = {layer: vector.norms[reuse_layer if reuse_layer is not None else layer] for layer in directions}
    lengths = norms if unit == "norm" else dict.fromkeys(norms, 1.0)
    # Answers are measured where the label would come: at p = 0, and nothing is generated.
    whole = SteeringTerm(vector.name, directions, site, alpha=steps, positions=positions) * max(lengths.values())
    whole.check_effect(range(1 - longest, 1), vectors.strongest(model))
    if site == vector.site:  # whose states the norms are differences of
        _warn_if_weak({layer: norm / lengths[layer] for layer, norm in norms.items()}, steps, site)
    group = session.group
    numbers_a_direction = len(directions) * (model.width + 2 * len(prompts) * len(steps))  # in float32; results in float64
    _require_memory(group.call(room_of_rank), random_directions, 4 * numbers_a_direction)
    sweep = Sweep(
        prompts=[prompt.prefix_ids for prompt in prompts],
        labels=[(prompt.label_id, prompt.other_id) for prompt in prompts],
        site=site,
        directions={
            layer: _beside_random(lengths[layer] * own, layer, random_directions, seed) for layer, own in directions.items()
        },
        alphas=tuple(alpha for alpha in steps if alpha != 0),
        positions=positions,
    )
    with group.exclusive() as outcome:  # an interrupt after the last question must not cost the user the report
        measured: Propensities = group.call(measure, sweep, on_event=on_event)[0]
        complete = measured.complete.reshape(-1, 2).all(1).numpy()  # [question]: in both orders
        if not complete.any():
            raise KeyboardInterrupt("stopped before any question was measured")
        steered, unsteered = _arrange(measured, steps)
        report = SteerabilityReport(
            alphas=steps,
            layers=tuple(sorted(directions)),
            propensities=steered[:, :, complete],
            unsteered=unsteered[complete],
            questions=tuple(question.text for question, done in zip(held_out.questions, complete, strict=True) if done),
            labels=_label_texts(prompts),
            vector=vector.name,
            site=site,
            norms=norms,
            unit=unit,
            counts={
                "test": int(complete.sum()),
                "unmeasured": int((~complete).sum()),
                "train": len(vector.training.digests),
                "excluded": len(given) - len(held_out),
                "rejected": sum(given.rejected.values()),
            },
            provenance={"chat": chat, **_provenance(session, vector, reuse_layer, positions, seed, measured)},
        )
        return outcome.keep(report, not complete.all())


def ablate_sites(
    session: Session,
    pairs: Any,
    data: Any,
    layers: str | int | Iterable[int] | None = None,
    sites: Sequence[str] = ABLATED_SITES,
    positions: str | Sequence[str] = ("label", "last"),
    method: str = "mean_diff",
    alphas: str | Sequence[float] = ALPHAS,
    seed: int = 0,
    on_event: OnEvent | None = None,
    chat: bool = False,
    unit: str = UNITS[0],
) -> SiteAblation:
    """See :func:`lens_magic.ablate_sites`."""
    model = session.require_model()
    wanted = options.parse_layers(layers, model.layers)
    alphas, unit = check_alphas(alphas), options.choice("unit", unit, UNITS)
    if isinstance(positions, str):  # a str is iterable too
        positions = [position.strip() for position in positions.split(",")]
    read_at = list(positions) if isinstance(positions, Iterable) else [positions]
    if not read_at:
        raise LensError(f"no position was named; {', '.join(POSITIONS)} are there")
    for position in read_at:
        vectors.check_choices(position, method)
    read = items_of.read(pairs), items_of.read(data, "questions")
    choices = [(site, position) for position in read_at for site in options.parse_sites(sites)]
    reports: dict[tuple[str, str], SteerabilityReport] = {}
    without: dict[tuple[str, str], tuple[int, ...]] = {}
    learnt: dict[tuple[str, str], SteeringVector] = {}
    for number, (site, position) in enumerate(choices):
        relay = _relay(on_event, number, len(choices))
        name = f"{site} at {position}"
        try:
            vector = vectors.train(session, read[0], wanted, site, position, method, name, some_layers=True, chat=chat)
            learnt[site, position] = vector
            reports[site, position] = evaluate(session, vector, read[1], alphas, seed=seed, on_event=relay, unit=unit)
        except KeyboardInterrupt as stopped:
            whole = getattr(stopped, "result", None)
            if whole is not None and not whole.counts["unmeasured"]:  # a report on fewer questions cannot be compared
                reports[site, position] = whole
            if not reports:
                raise KeyboardInterrupt("stopped before a site was evaluated") from None
            raise Interrupted(SiteAblation(reports, without, learnt)) from stopped
        except vectors.NoDirection as nothing:
            without[site, position] = wanted
            if len(without) == len(choices) and not reports:
                raise LensError(f"{name}: {nothing}") from nothing
            continue
        except LensError as error:
            if not reports:
                raise LensError(f"{name}: {error}") from error
            # Keep the results of the sites before it, which took minutes.
            warn(f"{name}: {error}; what is returned ends before it")
            break
        if missing := tuple(layer for layer in wanted if layer not in vector.directions):
            without[site, position] = missing
    return SiteAblation(reports, without, learnt)


def _relay(on_event: OnEvent | None, number: int, count: int) -> OnEvent | None:
    """Return an ``on_event`` that reports one evaluation's progress as part of all ``count``."""
    if on_event is None:
        return None

    def relay(event: tuple[Any, ...], tell: OnEvent = on_event) -> None:
        name, done, total = event
        tell((name, number * total + done, count * total))

    return relay


def check_alphas(alphas: str | Iterable[float]) -> tuple[float, ...]:
    """Return each α once, ascending; of text as :func:`parse_alphas` does.

    Raises:
        LensError: there are fewer than two, they differ by less than float32 can add, or one is not a finite number.
    """
    if isinstance(alphas, str):
        return parse_alphas(alphas)
    given = options.listed(alphas, ordered=False)
    try:
        given = given and [options.number("alpha", alpha) for alpha in given]
    except LensError:
        given = None
    if given is None:
        raise LensError(f"alphas {quoted(alphas)} are not numbers; (-1, 0, 1) would do")
    for alpha in given:
        if not math.isfinite(alpha):
            raise LensError(f"alpha {alpha} is not a finite number")
    steps = tuple(sorted(set(given)))
    if len(steps) < 2 or steps[-1] - steps[0] < np.finfo(np.float32).tiny:
        raise LensError(f"alphas {quoted(given)} are too few for a slope; two different ones would do")
    return steps


def parse_alphas(text: str) -> tuple[float, ...]:
    """Parse α from text: ``-1.5:1.5:0.5`` (the end is included if a step falls on it) or ``-1,0,1``.

    Raises:
        LensError: the text is neither.
    """
    try:
        if ":" not in text:
            return check_alphas([float(piece) for piece in text.split(",")])
        first, last, step = (float(piece) for piece in text.split(":"))
        count = math.floor((last - first) / step + 1e-6) + 1
        if step <= 0 or not 2 <= count <= 1000:
            raise ValueError
        # Multiplied, not added up: ten additions of 0.1 do not give 1.
        return check_alphas([round(first + number * step, 10) for number in range(count)])
    except (ValueError, OverflowError, ZeroDivisionError):
        raise LensError(f"alphas {text!r} are not understood; -1.5:1.5:0.5 or -1,0,1 would do") from None


def _directions(
    model: Model, vector: SteeringVector, layers: str | int | Iterable[int] | None, reuse_layer: int | None
) -> dict[int, torch.Tensor]:
    """Return the direction to apply at each layer."""
    learnt = sorted(vector.directions)
    has = ", ".join(map(str, learnt))
    if reuse_layer is not None:
        if reuse_layer not in vector.directions:
            raise LensError(f"{vector.name} has no direction of layer {reuse_layer} to reuse; it has {has}")
        return dict.fromkeys(options.parse_layers(layers, model.layers), vector.directions[reuse_layer])
    chosen = learnt if layers is None else options.parse_layers(layers, model.layers)
    for layer in chosen:
        if layer not in vector.directions:
            raise LensError(f"{vector.name} has no direction of layer {layer}; it has {has}; reuse_layer applies one anywhere")
    return {layer: vector.directions[layer] for layer in chosen}


def _warn_if_weak(norms: Mapping[int, float], alphas: Sequence[float], site: str) -> None:
    """Tell of layers at which every α is a small part of the difference that the direction was learnt from.

    α is absolute: states that are a hundred times as long as the demo model's need a hundred times its α.
    """
    largest = max(map(abs, alphas))
    weak = {layer: norm for layer, norm in sorted(norms.items()) if largest < WEAK * norm}
    if not weak:
        return
    least, most = min(weak.values()), max(weak.values())
    where = ", ".join(f"layer {layer} ({largest / norm:.1%})" for layer, norm in weak.items())
    if len(weak) > _NAMED:
        layers = list(weak)
        where = f"{len(weak)} layers from {layers[0]} to {layers[-1]} ({largest / most:.1%} to {largest / least:.1%})"
    enough = float(f"{most:.1g}")
    remedy = f"alphas of {-enough:g}:{enough:g}:{enough / 4:g}, say, would reach it"
    if most > _APART * least:
        remedy = f"it is {least:.3g} to {most:.3g} long: layers measured apart, or in units of it (unit norm), would tell"
    warn(f"α up to {largest:g} is a small part of the learnt difference at {site} of {where}: nothing may move; {remedy}")


def _require_memory(rooms: Sequence[Room], count: int, bytes_each: int) -> None:
    """Refuse more random directions than the ranks' hosts have room for, together with what is measured for them."""
    each = 2 * bytes_each  # they are sent, and the results put in order, as copies
    needed, free = each * (1 + count), min(room.host for room in rooms)
    if needed > free:
        most = free // each - 1
        instead = f"random_directions of at most {most:,}" if most > 0 else "fewer layers, questions or α"
        raise LensError(
            f"{counted(count, 'random direction')} and their results take {size(needed)} on a rank, where {size(free)} is "
            f"free; {instead} would do"
        )


def _beside_random(own: torch.Tensor, layer: int, count: int, seed: int) -> torch.Tensor:
    """Return the direction and random ones of its norm, ``[1 + count, d]``; they do not depend on the other layers swept."""
    generator = torch.Generator().manual_seed(options.generator_seed(seed * 100_003 + layer))
    random = torch.randn((count, own.shape[0]), generator=generator, dtype=torch.float32, device="cpu")
    random *= own.float().norm() / random.norm(dim=1, keepdim=True)
    return torch.cat([own.float()[None], random])


def _prompts(model: Model, questions: Sequence[items_of.Question], chat: bool) -> list[labels.LabelPrompt]:
    """Return for each question the prompt whose matching answer is A, then the one where it is B."""
    prompts = []
    for question in questions:
        for order in sorted(question.orders, key=lambda order: order.matching.strip(" ().\n")):
            prompt = labels.resolve(model.tokenizer, order.text, order.matching, order.other, chat)
            if len(prompt.prefix_ids) > model.context:
                raise LensError(
                    f"a question has {len(prompt.prefix_ids)} tokens, more than the model's context of {model.context}"
                )
            check_ids(model, (*prompt.prefix_ids, prompt.label_id, prompt.other_id))
            prompts.append(prompt)
    return prompts


def _label_texts(prompts: Sequence[labels.LabelPrompt]) -> dict[str, str]:
    """Return the label tokens as text; several if the tokenizer writes them differently after different prompts."""
    as_a, as_b = ([prompt.label for prompt in prompts[first::2]] for first in (0, 1))
    return {letter: " | ".join(dict.fromkeys(texts)) for letter, texts in (("A", as_a), ("B", as_b))}


def _arrange(measured: Propensities, alphas: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return ``[direction, layer, question, matching, alpha]``, unsteered at α = 0, and unsteered ``[question, matching]``."""
    unsteered = measured.unsteered.numpy().reshape(-1, 2)
    layers, directions, prompts, _ = measured.steered.shape
    steered = measured.steered.numpy().transpose(1, 0, 2, 3).reshape(directions, layers, prompts // 2, 2, -1)
    if 0 in alphas:
        at = alphas.index(0)
        still = np.broadcast_to(unsteered[..., None], (*steered.shape[:-1], 1))
        steered = np.concatenate([steered[..., :at], still, steered[..., at:]], -1)
    return np.ascontiguousarray(steered), unsteered.copy()


def _provenance(
    session: Session, vector: SteeringVector, reuse_layer: int | None, positions: Any, seed: int, measured: Propensities
) -> dict[str, Any]:
    return {
        **provenance(session),
        "vector": {"site": vector.site, "position": vector.position, "method": vector.method},
        "reuse_layer": reuse_layer,
        "positions": describe_positions(positions),
        "seed": seed,
        "resumed": measured.resumed,
    }
