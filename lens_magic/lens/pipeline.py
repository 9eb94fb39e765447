"""What every rank does for one run: generate with capture, then project."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import LensError
from ..model.generate import Generation, Sampling, generate
from ..model.load import Loaded
from ..ranks.memory import peak_memory, reset_peak_memory
from ..ranks.rank import Rank
from .capture import Plan, Trajectories
from .decode import project


@dataclass(frozen=True)
class Request:
    """One run, as sent to the ranks; validated before.

    Attributes:
        forced_ids: tokens to walk along instead of generating.
        prompt_tokens: the prompt's earlier positions are captured too.
        run_id: names the run whose states the ranks keep.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    top_k: int
    layers: tuple[int, ...]
    sites: tuple[str, ...]
    sampling: Sampling
    stop_ids: tuple[int, ...]
    forced_ids: tuple[int, ...] | None
    prompt_tokens: bool
    run_id: str


def model_of(rank: Rank) -> Loaded:
    """The model loaded on this rank."""
    loaded: Loaded | None = rank.store.get("model")
    if loaded is None:
        raise LensError("no model is loaded; `%lens load MODEL` loads one (`%lens load demo` the embedded one)")
    return loaded


def run_lens(rank: Rank, request: Request) -> dict[str, Any]:
    """Generate, then project what was captured. Collective.

    Returns:
        On every rank its memory; on rank 0 the generation, the variables and the positions they cover too.
    """
    loaded = model_of(rank)
    reset_peak_memory(loaded.device)
    rank.store.pop("trajectories", None)  # the last run's states make room
    tokens = len(request.forced_ids) if request.forced_ids is not None else request.max_new_tokens
    before = len(request.prompt_ids) - 1 if request.prompt_tokens else 0  # positions of the prompt, p < 0
    first = len(request.prompt_ids) - 1 - before
    trajectories = Trajectories(rank, loaded, Plan(request.sites, request.layers, first, before + tokens))
    made = generate(
        rank,
        loaded,
        request.prompt_ids,
        request.max_new_tokens,
        request.sampling,
        request.stop_ids,
        trajectories.visits(),
        request.forced_ids,
    )
    rank.store["trajectories"] = (request.run_id, trajectories)
    if made.interrupted:
        rank.acknowledge_stop()
    started = time.perf_counter()
    targets = [*request.prompt_ids[first + 1 :], *made.output_ids]
    variables, cut_short = project(rank, loaded, trajectories, targets, request.top_k)
    project_s = time.perf_counter() - started
    memory = {"captures": trajectories.nbytes, "peak": peak_memory(loaded.device)}
    if rank.rank != 0 or variables is None:
        return {"memory": memory}
    made.interrupted |= cut_short
    done = variables["entropy"].shape[-1]
    return {
        "memory": memory,
        "generation": made,
        "variables": variables,
        "positions": list(range(-before, done - before)),
        "project_s": project_s,
    }


def run_plain(
    rank: Rank, prompt_ids: Sequence[int], max_new_tokens: int, sampling: Sampling, stop_ids: tuple[int, ...]
) -> Generation:
    """Generate without looking. Collective."""
    made = generate(rank, model_of(rank), prompt_ids, max_new_tokens, sampling, stop_ids)
    if made.interrupted:
        rank.acknowledge_stop()
    return made
