"""Runs: what a user asks for is checked, sent to the ranks once, and comes back as one value."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from . import __version__, options
from .errors import LensError
from .session import Model, OnEvent, Session

if TYPE_CHECKING:
    from .lens.pipeline import Request
    from .lens.run import LensRun
    from .model.generate import Generation


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


def prompt_ids(model: Model, prompt: str, chat: bool = False) -> list[int]:
    """The prompt as tokens.

    Raises:
        LensError: it is empty, or no text.
    """
    from .model.tokens import encode

    if not isinstance(prompt, str):
        raise LensError(f"the prompt should be text, not {type(prompt).__name__}")
    ids = encode(model.tokenizer, prompt, chat) if prompt else []
    if not ids:
        raise LensError("the prompt is empty; write the text to continue below the %%lens line")
    return ids


def run(
    session: Session,
    prompt: str,
    max_new_tokens: int = 32,
    top_k: int = 5,
    layers: str | int | Iterable[int] | None = None,
    capture: str | Sequence[str] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    ignore_eos: bool = False,
    prompt_tokens: bool = False,
    force: str | Sequence[int] | None = None,
    chat: bool = False,
    on_event: OnEvent | None = None,
) -> LensRun:
    """See :func:`lens_magic.run`. Raises :class:`Interrupted`, with the partial run, where the user stops it."""
    from .lens.pipeline import Request, run_lens
    from .model.generate import Sampling

    model = session.require_model()
    options.check_sampling(temperature, top_p)
    if not 1 <= top_k <= model.vocabulary:
        raise LensError(f"top-k {top_k} is out of range; 1 to {model.vocabulary} (the vocabulary) would do")
    sites = options.parse_sites(capture)
    chosen = options.parse_layers(layers, model.layers)
    ids = prompt_ids(model, prompt, chat)
    forced = None if force is None else _forced_ids(model, force)
    new = len(forced) if forced is not None else max_new_tokens
    _check_length(len(ids), new, model.context, minimum=0 if prompt_tokens else 1)
    if new == 0 and len(ids) < 2:
        raise LensError("the lens of a text needs at least 2 tokens: each position is shown with the token that follows")
    request = Request(
        prompt_ids=ids,
        max_new_tokens=max_new_tokens,
        top_k=top_k,
        layers=chosen,
        sites=sites,
        sampling=Sampling(temperature, top_p, seed),
        stop_ids=() if ignore_eos else model.stop_ids,
        forced_ids=forced,
        prompt_tokens=prompt_tokens,
        run_id=uuid4().hex,
    )
    group = session.group
    with group.exclusive():  # an interrupt after the last token must not cost the user the result
        answers = group.call(run_lens, request, on_event=on_event)
        run = _make_run(session, prompt, request, answers, {"chat": chat, "ignore_eos": ignore_eos})
        late = group.rank.stop_requested
    if run.interrupted or late:
        raise Interrupted(run)
    return run


def _forced_ids(model: Model, force: str | Sequence[int]) -> tuple[int, ...]:
    """Tokens to walk along. What follows a prompt begins no sequence, so nothing special is added to a text."""
    if isinstance(force, str):
        ids = model.tokenizer(force, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    else:
        ids = [int(index) for index in force]
    if not ids or not all(0 <= index < model.vocabulary for index in ids):
        raise LensError(f"force should be text, or token ids from 0 to {model.vocabulary - 1}")
    return tuple(ids)


def _make_run(session: Session, prompt: str, request: Request, answers: list[dict[str, Any]], more: dict[str, Any]) -> LensRun:
    """A value of what the ranks answered."""
    from .lens.run import LensRun
    from .model.tokens import decode, token_texts

    model = session.require_model()
    own = answers[0]
    made, variables = own["generation"], own["variables"]
    captures = [answer["memory"]["captures"] for answer in answers]
    occurring = {*request.prompt_ids, *made.output_ids, *variables["token_id"].reshape(-1).tolist()}
    run_id = request.run_id

    def gather(site: str, layers: Sequence[int], rows: Sequence[int]) -> Any:
        from .lens.capture import gather as gather_states

        group = session.running_group
        if group is None or group.closed or group.lost:
            return None
        return group.call(gather_states, run_id, site, list(layers), list(rows))[0]

    return LensRun(
        prompt=prompt,
        prompt_ids=list(request.prompt_ids),
        output_ids=made.output_ids,
        text=decode(model.tokenizer, made.output_ids, model.stop_ids),
        sites=list(request.sites),
        layers=list(request.layers),
        positions=own["positions"],
        variables=variables,
        token_texts=token_texts(model.tokenizer, occurring),
        timings={**_timings(made), "project_s": own["project_s"]},
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
            "forced": request.forced_ids is not None,
            **more,
        },
        provenance=_provenance(session, model),
        interrupted=made.interrupted,
        _gather=gather,
    )


def generate(
    session: Session,
    prompt: str,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    ignore_eos: bool = False,
    chat: bool = False,
    on_event: OnEvent | None = None,
) -> GeneratedText:
    """See :func:`lens_magic.generate`."""
    from .lens.pipeline import run_plain
    from .model.generate import Sampling
    from .model.tokens import decode

    model = session.require_model()
    options.check_sampling(temperature, top_p)
    ids = prompt_ids(model, prompt, chat)
    _check_length(len(ids), max_new_tokens, model.context)
    made = session.group.call(
        run_plain,
        ids,
        max_new_tokens,
        Sampling(temperature, top_p, seed),
        () if ignore_eos else model.stop_ids,
        on_event=on_event,
    )[0]
    text = decode(model.tokenizer, made.output_ids, model.stop_ids)
    result = GeneratedText(text, made.output_ids, _timings(made), made.interrupted)
    if result.interrupted:
        raise Interrupted(result)
    return result


def _provenance(session: Session, model: Model) -> dict[str, Any]:
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


def _check_length(prompt: int, new: int, context: int, minimum: int = 1) -> None:
    if prompt > context:
        raise LensError(f"the prompt has {prompt} tokens, more than the model's context of {context}")
    if new < minimum:
        hint = "; with --prompt-tokens 0 gives the lens of the prompt itself" if new == 0 else ""
        raise LensError(f"max-new-tokens {new} is too few; {minimum} or more would do{hint}")
    # The last generated token is never read by the model.
    if prompt + new - 1 > context:
        raise LensError(
            f"{prompt} prompt tokens and {new} new ones exceed the model's context of {context}; "
            f"at most {context - prompt + 1} new ones fit"
        )


def _timings(made: Generation) -> dict[str, float]:
    steps = len(made.output_ids) - 1
    rate = steps / made.decode_s if steps > 0 and made.decode_s > 0 else float("nan")
    return {"prefill_s": made.prefill_s, "decode_s": made.decode_s, "tokens_per_s": rate}


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "transformers", "deepspeed"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
