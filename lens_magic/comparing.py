"""Comparisons with steering: a prompt continued unsteered and steered, and a run against its steered self, cell by cell."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from . import options, prompts, results, runs, vectors
from .errors import LensError, warn
from .generating import Generating
from .needs import Ask
from .provenance import provenance
from .session import Model, OnEvent, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .lens.difference import LensDiff
    from .lens.run import LensRun
    from .steer.compare import SteeredText
    from .steer.term import SteeringTerm, Strength


def compare(
    session: Session,
    prompt: prompts.Prompt,
    steer: Any,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    ignore_eos: bool = False,
    chat: bool = False,
    live: Callable[[], Sequence[Strength]] | None = None,
    on_event: OnEvent | None = None,
) -> SteeredText:
    """See :func:`lens_magic.compare`.

    Args:
        live: returns the strength of every term. It is called for every token, so strengths may change meanwhile.
        on_event: receives ("token", id, sequence): sequence 0 is the unsteered text, 1 the steered one.
    """
    from .lens.compared import LIVE, run_compared

    model = session.require_model()
    asked = Generating.checked(max_new_tokens, temperature, top_p, seed, ignore_eos, chat)
    text, ids, in_chat = prompts.read(model, prompt, asked.chat)
    asked, most = replace(asked, chat=in_chat), asked.max_new_tokens
    prompts.check_length(len(ids), most, model.context)
    terms = vectors.steering_terms(model, steer, [len(ids)], [most])
    if not terms:
        raise LensError("there is nothing to steer with; a vector, or NAME:1.5, would do")
    ask = Ask(most, len(ids), batch=2)
    if live is None:  # both texts are read again under both models, which takes more than generating them
        ask = replace(ask, layers=(model.layers - 1,), sites=("resid_post",), batch=4, forced=True)
    group = session.group
    with group.exclusive() as outcome:  # an interrupt before the first or after the last token counts too
        runs.refuse_what_cannot_fit(session, ask, smaller={"tokens"})
        group.rank.store[LIVE] = live
        try:
            told = (ids, most, asked.sampling, asked.stop_ids(model), terms, live is not None)
            answer = group.call(run_compared, *told, on_event=on_event)[0]
        finally:
            group.rank.store.drop(LIVE)
        record = {**asked.recorded(), "steering_digests": [term.digest for term in terms]}
        result = _steered_text(session, model, text, answer, tuple(str(term) for term in terms), record)
        if result.first_difference is None and live is None:
            _warn_if_weak(terms)
        return outcome.keep(result, result.interrupted)


def _warn_if_weak(terms: Sequence[SteeringTerm]) -> None:
    """Tell why steering may have changed no token: some models' states are hundreds of times as long as others'."""
    from .steer.term import WEAK

    shares = [term.share for term in terms]
    if any(share is None or share >= WEAK for share in shares):
        return
    told = ", ".join(
        f"α of {term.name!r} is {share:.1%} of the length of what it was learnt from ({max(term.norms.values()):.2g})"
        for term, share in zip(terms, shares, strict=True)
    )
    warn(f"both texts are the same: {told}; α nearer to that length would do")


def _steered_text(
    session: Session, model: Model, prompt: str, answer: dict[str, Any], steering: tuple[str, ...], asked: dict[str, Any]
) -> SteeredText:
    from .model.tokens import decode, token_texts
    from .steer.compare import Side, SteeredText

    made = answer["generation"]
    occurring = {index for output in made.outputs for index in output}
    sides = []
    for number, output in enumerate(made.outputs):
        log_probs = [tuple(values) for values in answer["log_probs"][number]] if answer["log_probs"] else []
        sides.append(Side(decode(model.tokenizer, output, model.stop_ids), output, *log_probs))
    return SteeredText(
        prompt=prompt,
        unsteered=sides[0],
        steered=sides[1],
        token_texts=token_texts(model.tokenizer, occurring),
        steering=steering,
        timings=results.timings_of(made),
        options=asked,
        provenance=provenance(session),
        alphas=tuple(tuple(strength.alpha for strength in token) for token in answer["strengths"]),
        clips=tuple(tuple(strength.clip for strength in token) for token in answer["strengths"]),
        interrupted=made.interrupted,
        end_ids=tuple(sorted(occurring.intersection(model.stop_ids))),
    )


def diff(session: Session, run: LensRun, steer: Any, on_event: OnEvent | None = None) -> LensDiff:
    """See :func:`lens_magic.diff`."""
    from .lens.difference import LensDiff, run_difference
    from .lens.pipeline import Request
    from .lens.projector import NORMS, PLAIN
    from .model.choose import GREEDY

    model = session.require_model()
    _check_comparable(run, model)
    ids, output = tuple(run.prompt_ids), tuple(run.output_ids)
    # Schedules run over the tokens that were asked for, even if the run ended early; a forced text has its own length.
    limit = options.integer("max-new-tokens", run.options.get("max_new_tokens", 0))
    asked = len(output) if run.options.get("forced") else max(len(output), limit)
    terms = vectors.steering_terms(model, steer, [len(ids)], [len(output)], asked=asked)
    if not terms:
        raise LensError("lens.diff needs something that makes a difference: steer=(vector * 1.5,)")
    request = Request(
        prompts=(ids, ids),
        max_new_tokens=len(output),
        top_k=int(run.variables["token_id"].shape[-1]),
        layers=options.parse_layers(run.layers, model.layers),
        sites=options.parse_sites(run.sites),
        sampling=GREEDY,
        stop_ids=(),
        forced=(output, output) if output else None,
        prompt_tokens=bool(run.options.get("prompt_tokens")),
        run_id=uuid4().hex,
        steering=tuple(term.for_sequences(1) for term in terms),
        capture_dtype=options.check_dtype(run.options.get("capture_dtype")),
        offload=bool(run.options.get("offload")),
        look=replace(PLAIN, norm=options.choice("norm", run.options.get("norm", "own"), NORMS)),
    )
    group = session.group
    with group.exclusive() as outcome:
        runs.refuse_what_cannot_fit(session, runs.ask_of(request), smaller=set(), drops=True)
        answers = group.call(run_difference, request, on_event=on_event)
        if answers[0]["kl"] is None:
            raise KeyboardInterrupt("stopped comparing; nothing was kept")
        more = {name: run.options[name] for name in ("chat", "ignore_eos", "lens", "norm") if name in run.options}
        made_with = provenance(session)
        base, steered = (
            results.make_run(session, run.prompt, request, answers, number, made_with, more) for number in range(2)
        )
        return outcome.keep(LensDiff(base, steered, answers[0]["kl"]))


def _check_comparable(run: LensRun, model: Model) -> None:
    from .lens.run import LensRun
    from .model.fingerprint import comparable
    from .steer.spans import in_short

    if not isinstance(run, LensRun):
        raise LensError(f"lens.diff takes one run of lens.run, not {type(run).__name__}; of several, each by itself")
    made_with = run.provenance.get("model_fingerprint")
    if not comparable(made_with, model.fingerprint):
        raise LensError(
            f"whether this run was made with the weights of {model.name} cannot be told: a model from files and one attached "
            "from memory cannot be compared; a run made with the one that is there now would do"
        )
    if made_with != model.fingerprint:
        made, there = (str(mark).rpartition(":")[2][:12] for mark in (made_with, model.fingerprint))
        remedy = "a run made with these weights" if model.checkpoint is None else f"`%lens load {run.model}`, the run's,"
        raise LensError(
            f"this run was made with {run.model} (fingerprint {made}), but {model.name} ({there}) is loaded; {remedy} would do"
        )
    if not all(0 <= index < model.vocabulary for index in (*run.prompt_ids, *run.output_ids)):
        raise LensError(f"this run has tokens beyond the {model.vocabulary} of {model.name}'s vocabulary: its file is damaged")
    if run.options.get("steering"):
        raise LensError(
            f"this run was steered itself ({'; '.join(map(in_short, run.options['steering']))}); give the unsteered run"
        )
    kind = run.options.get("lens", {}).get("kind", "logit")
    if kind != "logit":
        raise LensError(f"lens.diff compares through the logit lens; this run was seen through a {kind} one: run it without")
