"""Runs: what a user asks for is checked, sent to the ranks once, and comes back as one value."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from . import __version__, options, vectors
from .errors import LensError
from .needs import SMALLER, Ask, facts_of, refuse_run, room_of_rank
from .prompts import all_forced_ids, all_prompt_ids, check_length, longest_continuation, several
from .session import OnEvent, Session

if TYPE_CHECKING:
    from .lens.pipeline import Request
    from .lens.projector import Look
    from .lens.run import LensRun
    from .model.generate import Generation
    from .steer.term import SteeringTerm


class Interrupted(KeyboardInterrupt):
    """The user stopped a run; ``result`` is what there was by then."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


@dataclass(frozen=True)
class GeneratedText:
    """A generation without capture: ``text``, ``output_ids``, ``timings`` (as :class:`LensRun` has them)."""

    text: str
    output_ids: list[int]
    timings: dict[str, float]
    interrupted: bool = False


def run(
    session: Session,
    prompt: str | Sequence[str],
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
    """See :func:`lens_magic.run`. Raises :class:`Interrupted`, with the partial run, where the user stops it."""
    from .lens import chosen as asked
    from .lens.pipeline import Request, run_lens
    from .model.choose import Sampling

    model = session.require_model()
    sampling = Sampling(*options.check_sampling(temperature, top_p, seed))
    max_new_tokens, top_k = options.integer("max-new-tokens", max_new_tokens), options.integer("top-k", top_k)
    sites = options.parse_sites(capture)
    chosen = options.parse_layers(layers, model.layers)
    given = asked.as_lens(lens)
    look = asked.look(given, norm, track, model, sites)
    if not 1 <= top_k <= max(model.vocabulary, look.directions):
        whole = (
            f"{look.directions} (the basis)" if look.directions > model.vocabulary else f"{model.vocabulary} (the vocabulary)"
        )
        raise LensError(f"top-k {top_k} is out of range; 1 to {whole} would do")
    prompts = several(prompt)
    ids = all_prompt_ids(model, prompts, chat)
    if stream_lens and (look.kind == "basis" or len(prompts) > 1):
        raise LensError("only a single prompt's tokens can be streamed; leave out --stream-lens for a basis or several prompts")
    forced = None if force is None else all_forced_ids(model, [force] if isinstance(prompt, str) else force, len(prompts))
    for number, one in enumerate(ids):
        new = len(forced[number]) if forced is not None else max_new_tokens
        check_length(len(one), new, model.context, bool(prompt_tokens))
        if new == 0 and len(one) < 2:
            raise LensError("the lens of a text needs at least 2 tokens: each position is shown with the token that follows")
    longest, most_new = max(map(len, ids)), longest_continuation(forced, max_new_tokens)
    if longest + most_new - 1 > model.context:  # each fits, but shorter ones are walked along with the longest
        raise LensError(
            f"side by side these prompts and texts take {longest + most_new - 1} positions, more than the model's context of "
            f"{model.context}; one by one they fit"
        )
    request = Request(
        prompts=ids,
        max_new_tokens=max_new_tokens,
        top_k=min(top_k, look.directions or top_k),
        layers=chosen,
        sites=sites,
        sampling=sampling,
        stop_ids=() if ignore_eos else model.stop_ids,
        forced=forced,
        prompt_tokens=bool(prompt_tokens),
        run_id=uuid4().hex,
        steering=vectors.steering_terms(model, steer, longest, most_new, len(ids)),
        capture_dtype=options.check_dtype(capture_dtype),
        offload=bool(offload),
        look=look,
        stream=stream_lens,
    )
    group = session.group
    with group.exclusive():  # an interrupt before the first token or after the last one is not lost, nor is the result
        refuse_what_cannot_fit(session, ask_of(request))
        group.rank.store["given_lens"] = given  # sent on by rank 0, a share to each rank, where they lack it
        answers = group.call(run_lens, request, on_event=on_event)
        more = {"chat": bool(chat), "ignore_eos": bool(ignore_eos), **_looked(look)}
        made = [
            make_run(session, text, request, answers, number, more, getattr(given, "labels", ()))
            for number, text in enumerate(prompts)
        ]
        late = group.rank.stop_requested
    result = made[0] if isinstance(prompt, str) else made
    if made[0].interrupted or late:
        raise Interrupted(result)
    return result


def ask_of(request: Request) -> Ask:
    """What a request needs memory for."""
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
    )


def refuse_what_cannot_fit(session: Session, ask: Ask, smaller: Set[str] = SMALLER) -> None:
    """Raise where the ranks lack the memory for a run; where its needs cannot be told, it is tried.

    Args:
        smaller: what of it may be proposed in less.
    """
    group = session.group
    loaded = group.rank.store.get("model")
    if loaded is None:
        return
    facts = facts_of(loaded.model.config, str(loaded.dtype).removeprefix("torch."))
    if facts is not None:
        refuse_run(facts, ask, group.call(room_of_rank, bool(ask.sites)), smaller)


def make_run(
    session: Session,
    prompt: str,
    request: Request,
    answers: list[dict[str, Any]],
    number: int,
    more: dict[str, Any],
    labels: Sequence[str] = (),
) -> LensRun:
    """A value of what the ranks answered for one of the prompts; ``labels`` of a basis' directions, where there is one."""
    from .lens.run import LensRun
    from .model.tokens import decode, token_texts

    model = session.require_model()
    own = answers[0]
    made, variables, ids = own["generation"], own["variables"][number], request.prompts[number]
    output_ids = made.outputs[number]
    captures = [answer["memory"]["captures"] for answer in answers]
    _warn_of_cells_without_numbers(variables["entropy"], request)
    candidates = _candidates(variables)
    occurring = {*ids, *output_ids, *(() if labels else candidates)}
    before = len(ids) - 1 if request.prompt_tokens else 0
    run_id = f"{request.run_id}:{number}"
    skipped = request.longest - 1 - before - request.plan.first  # captured rows before this sequence's first

    def gather(site: str, layers: Sequence[int], rows: Sequence[int]) -> Any:
        from .lens.capture import gather as gather_states

        group = session.running_group
        if group is None or group.closed or group.lost:
            return None
        return group.call(gather_states, run_id, site, list(layers), [skipped + row for row in rows])[0]

    return LensRun(
        prompt=prompt,
        prompt_ids=list(ids),
        output_ids=output_ids,
        text=decode(model.tokenizer, output_ids, model.stop_ids),
        sites=list(request.sites),
        layers=list(request.layers),
        positions=list(range(-before, variables["entropy"].shape[-1] - before)),
        variables=variables,
        token_texts=token_texts(model.tokenizer, occurring),
        timings={**timings_of(made), "project_s": own["project_s"]},
        memory={
            "captures": max(captures),
            "peak": max(answer["memory"]["peak"] for answer in answers),
            "captures_by_rank": captures,
        },
        options={
            "max_new_tokens": request.max_new_tokens,
            "top_k": request.top_k,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "seed": request.sampling.seed,
            "prompt_tokens": request.prompt_tokens,
            "forced": request.forced is not None,
            "capture_dtype": request.capture_dtype,
            "offload": request.offload,
            "steering": [str(term) for term in _steering_of(request, number)],
            **more,
        },
        provenance=provenance(session),
        interrupted=made.interrupted,
        labels={index: labels[index] for index in candidates} if labels else {},
        _gather=gather,
    )


def _steering_of(request: Request, number: int) -> list[SteeringTerm]:
    """What steered one of the prompts."""
    terms = (term.of_sequence(number, len(request.prompts)) for term in request.steering)
    return [term for term in terms if term is not None]


def _warn_of_cells_without_numbers(entropy: np.ndarray, request: Request) -> None:
    if lost := int(np.isnan(entropy).sum()):
        narrow = request.capture_dtype == "float16"  # whose largest number is 65,504
        why = (
            "float16 is too narrow for the states (capture dtype bfloat16" if narrow else "states are not finite (dtype float32"
        )
        warnings.warn(f"{lost} of {entropy.size} cells hold no numbers: {why} would do)", stacklevel=2)


def _candidates(variables: dict[str, np.ndarray]) -> list[int]:
    """All ids in a run, ascending."""
    found = [np.unique(variables[name]) for name in ("token_id", "tracked_id") if name in variables]
    return [index for index in np.unique(np.concatenate(found)).tolist() if index >= 0]


def _looked(look: Look) -> dict[str, Any]:
    """What was asked of the lens, for the record."""
    return {
        "lens": {"kind": look.kind, "name": look.name, "digest": look.lens},
        "norm": look.norm,
        "track": "first" if look.track_first else list(look.track),
    }


def generate(
    session: Session,
    prompt: str | Sequence[str],
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
    from .model.choose import Sampling
    from .model.tokens import decode

    model = session.require_model()
    sampling = Sampling(*options.check_sampling(temperature, top_p, seed))
    max_new_tokens = options.integer("max-new-tokens", max_new_tokens)
    ids = all_prompt_ids(model, several(prompt), chat)
    for one in ids:
        check_length(len(one), max_new_tokens, model.context)
    longest = max(map(len, ids))
    terms = vectors.steering_terms(model, steer, longest, max_new_tokens, len(ids))
    group = session.group
    with group.exclusive():  # as in run
        refuse_what_cannot_fit(session, Ask(max_new_tokens, longest, batch=len(ids)))
        stop_ids = () if ignore_eos else model.stop_ids
        made = group.call(run_plain, ids, max_new_tokens, sampling, stop_ids, terms, on_event=on_event)[0]
        late = group.rank.stop_requested
    texts = [decode(model.tokenizer, output, model.stop_ids) for output in made.outputs]
    timings = timings_of(made)
    results = [GeneratedText(text, output, timings, made.interrupted) for text, output in zip(texts, made.outputs, strict=True)]
    result = results[0] if isinstance(prompt, str) else results
    if made.interrupted or late:
        raise Interrupted(result)
    return result


def provenance(session: Session) -> dict[str, Any]:
    """What a result is made with: versions, model, ranks, dtype, time."""
    model = session.require_model()
    return {
        "lens_magic": __version__,
        **_versions(),
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "revision": model.revision,
        "ranks": session.group.size,
        "dtype": model.dtype,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def timings_of(made: Generation) -> dict[str, float]:
    """Seconds, and tokens a second."""
    steps = made.longest - 1
    rate = steps / made.decode_s if steps > 0 and made.decode_s > 0 else float("nan")
    streaming = {"streamed": made.streamed, "stream_s": made.stream_s} if made.streamed else {}
    return {"prefill_s": made.prefill_s, "decode_s": made.decode_s, "tokens_per_s": rate, **streaming}


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "transformers", "deepspeed"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
