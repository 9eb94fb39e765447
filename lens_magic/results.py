"""Results: turn what the ranks answer into a value for the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import warn
from .session import Session
from .words import finite_again

if TYPE_CHECKING:
    from .lens.pipeline import Request
    from .lens.run import LensRun
    from .model.generate import Generation
    from .steer.term import SteeringTerm


@dataclass(frozen=True)
class GeneratedText:
    """A generation without capture: ``text``, ``output_ids``, ``timings`` (as :class:`LensRun` has them)."""

    text: str
    output_ids: list[int]
    timings: dict[str, float]
    interrupted: bool = False


def make_run(
    session: Session,
    prompt: str,
    request: Request,
    answers: list[dict[str, Any]],
    number: int,
    made_with: dict[str, Any],
    more: dict[str, Any],
    labels: Sequence[str] = (),
) -> LensRun:
    """Make the run of prompt ``number`` from the ranks' answers.

    Args:
        made_with: the provenance, the same for all prompts of a batch.
        more: other options to record.
        labels: those of a basis, if there is one.
    """
    from .lens.run import LensRun
    from .model.tokens import decode, token_texts

    model = session.require_model()
    own = answers[0]
    made, variables, ids = own["generation"], own["variables"][number], request.prompts[number]
    output_ids = made.outputs[number]
    captures = [answer["memory"]["captures"] for answer in answers]
    terms = _steering_of(request, number)
    steering = [str(term) for term in terms]
    _warn_of_cells_without_numbers(variables["entropy"], request, finite_again(model.dtype, bool(steering)))
    candidates = _candidates(variables)
    occurring = {*ids, *output_ids, *(() if labels else candidates)}
    run_id = f"{request.run_id}:{number}"
    before, first_row = request.before(number), request.first_row(number)

    def gather(site: str, layers: Sequence[int], rows: Sequence[int]) -> Any:
        from .lens.capture import gather as gather_states

        group = session.running_group
        if group is None or not group.usable:
            return None
        return group.call(gather_states, run_id, site, list(layers), [first_row + row for row in rows])[0]

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
            "steering": steering,
            "steering_digests": [term.digest for term in terms],
            **more,
        },
        provenance=dict(made_with),
        interrupted=made.interrupted,
        labels={index: labels[index] for index in candidates} if labels else {},
        _gather=gather,
    )


def _steering_of(request: Request, number: int) -> list[SteeringTerm]:
    """Return the terms that steered one of the prompts: those that meet a position of its own."""
    positions = range(1 - len(request.prompts[number]), request.new(number))
    terms = (term.of_sequence(number, len(request.prompts)) for term in request.steering)
    return [term for term in terms if term is not None and term.has_effect(positions)]


def _warn_of_cells_without_numbers(entropy: np.ndarray, request: Request, remedy: str) -> None:
    if lost := int(np.isnan(entropy).sum()):
        narrow = request.capture_dtype == "float16"  # whose largest number is 65,504
        why = (
            "float16 is too narrow for the states (capture dtype bfloat16 would do)"
            if narrow
            else f"states are not finite ({remedy})"
        )
        warn(f"{lost} of {entropy.size} cells hold no numbers: {why}")


def _candidates(variables: dict[str, np.ndarray]) -> list[int]:
    """Return all candidates' and followed tokens' ids in a run, ascending."""
    found = [variables[name] for name in ("token_id", "tracked_id") if name in variables]
    largest = max(int(ids.max(initial=-1)) for ids in found)
    seen = np.zeros(largest + 2, dtype=bool)  # marked, since sorting the millions of a long run takes a second
    for ids in found:
        seen[ids] = True  # −1, which stands for no token, marks the last, which is none's
    marked: list[int] = np.flatnonzero(seen[:-1]).tolist()
    return marked


def timings_of(made: Generation) -> dict[str, float]:
    """Return the timings in seconds, and tokens per second while decoding."""
    steps = made.longest - 1
    rate = steps / made.decode_s if steps > 0 and made.decode_s > 0 else float("nan")
    streaming = {"streamed": made.streamed, "stream_s": made.stream_s} if made.streamed else {}
    return {"prefill_s": made.prefill_s, "decode_s": made.decode_s, "tokens_per_s": rate, **streaming}
