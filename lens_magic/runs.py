"""Runs: check what a user asks for, send it to the ranks once, and return one value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from . import options, vectors
from .errors import LensError
from .generating import Generating
from .needs import SMALLER, Ask, facts_of, refuse_run
from .prompts import all_forced_ids, check_length, read_all
from .provenance import provenance
from .results import GeneratedText, make_run, timings_of
from .rooms import room_of_rank
from .session import Model, OnEvent, Session

if TYPE_CHECKING:
    from .lens.pipeline import Request
    from .lens.projector import Look
    from .prompts import Prompt


def run(
    session: Session,
    prompt: Prompt | Sequence[Prompt],
    max_new_tokens: int = 32,
    top_k: int = 5,
    layers: str | int | Iterable[int] | None = None,
    capture: str | Sequence[str] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    ignore_eos: bool = False,
    prompt_tokens: bool = False,
    steer: Any = (),
    force: Any = None,
    chat: bool = False,
    capture_dtype: str | None = None,
    offload: bool = False,
    lens: Any = None,
    norm: str = "own",
    track: Any = (),
    stream_lens: bool = False,
    on_event: OnEvent | None = None,
) -> Any:
    """See :func:`lens_magic.run`. Raises :class:`Interrupted`, with the partial run, if the user stops it."""
    from .lens import chosen as lenses
    from .lens.pipeline import Request, run_lens
    from .lens.projector import GIVEN

    model = session.require_model()
    asked = Generating.checked(max_new_tokens, temperature, top_p, seed, ignore_eos, chat)
    most, top_k = asked.max_new_tokens, options.integer("top-k", top_k)
    prompt_tokens, offload = options.flag("prompt_tokens", prompt_tokens), options.flag("offload", offload)
    stream_lens = options.flag("stream_lens", stream_lens)
    sites = options.parse_sites(capture)
    chosen = options.parse_layers(layers, model.layers)
    given = lenses.as_lens(lens)
    look = lenses.look(given, norm, track, model, sites)
    options.check_top_k(top_k, model.vocabulary, look.directions)
    prompts, alone = read_all(model, prompt, asked.chat)
    if stream_lens and (look.kind == "basis" or len(prompts) > 1):
        raise LensError(
            "only a single prompt's tokens can be streamed, and not along a basis; leave out --stream-lens (stream_lens=True)"
        )
    ids = tuple(one.ids for one in prompts)
    forced = None if force is None else all_forced_ids(model, [force] if alone else force, len(prompts))
    new = [most] * len(ids) if forced is None else [*map(len, forced)]
    _check_lengths(model, ids, new, prompt_tokens)
    request = Request(
        prompts=ids,
        max_new_tokens=most,
        top_k=min(top_k, look.directions or top_k),
        layers=chosen,
        sites=sites,
        sampling=asked.sampling,
        stop_ids=asked.stop_ids(model),
        forced=forced,
        prompt_tokens=prompt_tokens,
        run_id=uuid4().hex,
        steering=vectors.steering_terms(model, steer, [*map(len, ids)], new),
        capture_dtype=options.check_dtype(capture_dtype),
        offload=offload,
        look=look,
        stream=stream_lens,
    )
    more = {"ignore_eos": asked.ignore_eos, **_looked(look)}
    labels = getattr(given, "labels", ())
    group = session.group
    with group.exclusive() as outcome:  # an interrupt before the first or after the last token counts too
        refuse_what_cannot_fit(session, ask_of(request), drops=True)
        group.rank.store[GIVEN] = given  # rank 0 sends each rank its share, unless they hold it already
        answers = group.call(run_lens, request, on_event=on_event)
        made_with = provenance(session)
        made = [
            make_run(session, one.text, request, answers, number, made_with, {"chat": one.chat, **more}, labels)
            for number, one in enumerate(prompts)
        ]
        return outcome.keep(made[0] if alone else made, made[0].interrupted)


def _check_lengths(model: Model, ids: Sequence[Sequence[int]], new: Sequence[int], prompt_tokens: bool) -> None:
    """Refuse what does not fit into the model's context, each prompt alone and all of them as one batch.

    Args:
        new: the most tokens that can follow each prompt.
    """
    for one, most in zip(ids, new, strict=True):
        check_length(len(one), most, model.context, prompt_tokens)
        if most == 0 and len(one) < 2:
            raise LensError("the lens of a text needs at least 2 tokens: each position is shown with the token that follows")
    together = max(map(len, ids)) + max(new) - 1
    if together > model.context:  # each fits, but in a batch shorter prompts take as many columns as the longest
        raise LensError(
            f"side by side these prompts and texts take {together} positions, more than the model's context of "
            f"{model.context}; one by one they fit"
        )


def _looked(look: Look) -> dict[str, Any]:
    """Return the lens options, to be recorded with the run."""
    return {
        "lens": {"kind": look.kind, "name": look.name, "digest": look.lens},
        "norm": look.norm,
        "track": "first" if look.track_first else list(look.track),
    }


def ask_of(request: Request) -> Ask:
    """Return the size of a request, from which its memory is computed."""
    plan = request.plan
    return Ask(
        tokens=request.tokens,
        prompt=request.longest,
        whole_prompt=request.prompt_tokens,
        layers=request.layers,
        sites=request.sites,
        batch=len(request.prompts),
        capture_itemsize=plan.dtype.itemsize if plan.dtype is not None else None,
        offload=request.offload,
        forced=request.forced is not None,
        tuned=request.look.kind == "tuned",
        directions=request.look.directions,
        top_k=request.top_k,
        tracked=len(request.look.track) or request.look.track_first,
    )


def refuse_what_cannot_fit(session: Session, ask: Ask, smaller: Set[str] = SMALLER, drops: bool = False) -> None:
    """Refuse a run that the ranks lack the memory for; if its needs cannot be predicted, it is tried.

    Args:
        smaller: fields of ``ask`` that may be changed to propose a smaller run.
        drops: the last run's states and lens are freed for it.
    """
    from .model.load import MODEL

    group = session.group
    loaded = group.rank.store.get(MODEL)
    if loaded is None:
        return
    facts = facts_of(loaded.model.config, str(loaded.dtype).removeprefix("torch."))
    if facts is not None:
        refuse_run(facts, ask, group.call(room_of_rank, drops), smaller)


def generate(
    session: Session,
    prompt: Prompt | Sequence[Prompt],
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    ignore_eos: bool = False,
    steer: Any = (),
    chat: bool = False,
    on_event: OnEvent | None = None,
) -> Any:
    """See :func:`lens_magic.generate`."""
    from .lens.pipeline import run_plain
    from .model.tokens import decode

    model = session.require_model()
    asked = Generating.checked(max_new_tokens, temperature, top_p, seed, ignore_eos, chat)
    prompts, alone = read_all(model, prompt, asked.chat)
    ids, most = tuple(one.ids for one in prompts), asked.max_new_tokens
    for one in ids:
        check_length(len(one), most, model.context)
    lengths = [*map(len, ids)]
    terms = vectors.steering_terms(model, steer, lengths, [most] * len(ids))
    group = session.group
    with group.exclusive() as outcome:  # as in run
        refuse_what_cannot_fit(session, Ask(most, max(lengths), batch=len(ids)))
        told = (ids, most, asked.sampling, asked.stop_ids(model), terms)
        made = group.call(run_plain, *told, on_event=on_event)[0]
        timings = timings_of(made)
        results = [
            GeneratedText(decode(model.tokenizer, output, model.stop_ids), output, timings, made.interrupted)
            for output in made.outputs
        ]
        return outcome.keep(results[0] if alone else results, made.interrupted)
