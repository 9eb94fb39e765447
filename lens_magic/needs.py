"""The memory a model and a run need on each rank, and refusals if what is free is too little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .errors import LensError
from .rooms import Room, spread
from .words import size

if TYPE_CHECKING:
    from .model.checkpoint import Checkpoint
    from .model.footprint import Facts, Weights


@dataclass(frozen=True)
class Ask:
    """The size of a run: new tokens, tokens of the longest prompt, prompts in the batch, and what is captured.

    Attributes:
        whole_prompt: the prompt's positions are captured too.
        layers, sites: those captured; empty if nothing is.
        capture_itemsize: bytes per captured number; None for the model's own type.
        offload: captured states are kept in the host's memory.
        forced: the new tokens are known, and read with the prompt in one forward pass.
        tuned: a tuned lens is used, whose translators are on the ranks that keep the matching states.
        directions: rows of a basis, which are split like the vocabulary; 0 without a basis.
        top_k, tracked: candidates and followed tokens kept of every cell.
    """

    tokens: int
    prompt: int = 1
    whole_prompt: bool = False
    layers: tuple[int, ...] = ()
    sites: tuple[str, ...] = ()
    batch: int = 1
    capture_itemsize: int | None = None
    offload: bool = False
    forced: bool = False
    tuned: bool = False
    directions: int = 0
    top_k: int = 0
    tracked: int = 0

    @property
    def columns(self) -> int:
        """Tokens of each sequence that the model reads; it never reads the last generated one."""
        return self.prompt + max(0, self.tokens - 1)

    @property
    def rows(self) -> int:
        """Captured positions of each sequence."""
        return self.tokens + (self.prompt - 1 if self.whole_prompt else 0)


@dataclass(frozen=True)
class Need:
    """Bytes needed on one rank.

    Attributes:
        weights: parameters; on a CPU, those that all ranks of a host share are divided among them.
        cache: keys and values.
        captures: captured states (on the host if they are offloaded).
        forward: the model's activations in the prefill, roughly.
        projection: workspace of the projection. It and ``forward`` are not needed at the same time.
        lens: this rank's translators of a tuned lens, or rows of a basis.
        results: the lens's variables, which rank 0 has on the host.
        on_host: the part of ``captures`` and ``results`` that is in the host's memory instead of a GPU's.
        loading: the host's memory needed while loading, before anything else.
    """

    weights: int
    cache: int = 0
    captures: int = 0
    forward: int = 0
    projection: int = 0
    lens: int = 0
    results: int = 0
    on_host: int = 0
    loading: int = 0

    @property
    def total(self) -> int:
        """The most bytes needed on the rank's device at one time."""
        kept = self.captures + self.results - self.on_host
        return self.weights + self.cache + kept + self.lens + max(self.forward, self.projection)

    def most(self, room: Room) -> tuple[int, int]:
        """The most bytes needed at one time of the device, and of the host beside it, loading included."""
        if room.kind == "cpu":
            return max(self.total, self.loading), self.on_host
        return self.total, max(self.on_host, self.loading)

    def fits(self, room: Room) -> bool:
        """Whether the device and the host have enough free memory."""
        device, host = self.most(room)
        return device <= room.free and host <= room.host


def facts_of(config: Any, dtype: str) -> Facts | None:
    """Return a model's dimensions, or None if its configuration does not give them."""
    from .model.footprint import Facts

    try:
        return Facts.of(config, dtype)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def run_needs(facts: Facts, ask: Ask, rooms: Sequence[Room], weights: Sequence[int]) -> list[Need]:
    """Return what a run needs on every rank.

    Args:
        rooms, weights: for each rank, its free memory and the bytes of its parameters (0 if they are loaded already).
    """
    from .lens.decode import result_bytes, workspace_bytes
    from .lens.projector import bytes_needed
    from .model.footprint import cache_bytes, forward_bytes
    from .model.head import shard_bounds
    from .ranks.memory import pinned_bytes

    ranks = len(rooms)
    asked = [(site, layer) for layer in ask.layers for site in ask.sites]
    kept = list(dict.fromkeys([*asked, ("resid_post", facts.layers - 1)])) if asked else []  # as Trajectories keeps them
    bounds = shard_bounds(facts.vocabulary, ranks)
    rows = max(end - begin for begin, end in pairwise(bounds))
    least = min(room.free for room in rooms)
    found = []
    for rank, room in enumerate(rooms):
        state = len(kept[rank::ranks]) * ask.batch * facts.width
        captures = ask.rows * state * (ask.capture_itemsize or facts.itemsize)
        offloaded = ask.offload and room.kind != "cpu"
        captures = pinned_bytes(captures) if offloaded else captures
        results = 0 if rank else result_bytes(len(asked), ask.rows * ask.batch, ask.top_k, ask.tracked)
        found.append(
            Need(
                weights=weights[rank],
                cache=cache_bytes(facts, ranks, rank, ask.columns, ask.batch),
                captures=captures + state * facts.itemsize,
                forward=forward_bytes(facts, ranks, ask.columns if ask.forced else ask.prompt, ask.batch, room.kind),
                projection=workspace_bytes(
                    device=room.kind,
                    free=least,
                    rows=rows,
                    width=facts.width,
                    itemsize=facts.itemsize,
                    keys=len(kept),
                    total=ask.rows,
                    softcapped=facts.softcapped,
                    k=ask.top_k,
                    ranks=ranks,
                    rank=rank,
                ),
                lens=bytes_needed(kept[rank::ranks], facts.layers, facts.width, ranks, ask.tuned, ask.directions),
                results=results,
                on_host=(captures if offloaded else 0) + (results if room.kind != "cpu" else 0),
            )
        )
    return found


def weight_bytes(weights: Sequence[Weights], rooms: Sequence[Room], mapped: bool) -> list[int]:
    """Return the bytes of parameters counted for each rank, once loaded.

    On a CPU, weights that are used in the file's type are memory-mapped: the ranks of a host share their pages, and each page
    is counted once. Weights converted to another type are copied on every rank, and the head is then not split.
    """
    ranks = len(weights)
    head = sum(one.head for one in weights)
    found = []
    for one, room in zip(weights, rooms, strict=True):
        if room.kind != "cpu":
            found.append(one.total)
        elif mapped:
            found.append(one.split + one.whole // ranks + one.head)
        else:
            found.append(one.split + one.whole + head)
    return found


def loading_bytes(weights: Sequence[Weights], mapped: bool) -> int:
    """Return the host bytes each rank needs while loading: a checkpoint in another type is converted before it is split."""
    return 0 if mapped else sum(one.split + one.head for one in weights) + weights[0].whole


def fit(needs: Sequence[Need], rooms: Sequence[Room]) -> bool:
    """Whether every rank has what it needs."""
    return all(need.fits(room) for need, room in zip(needs, rooms, strict=True))


SMALLER = frozenset({"tokens", "layers", "sites", "top_k", "capture_itemsize", "offload", "batch"})
"""Fields of :class:`Ask` that may be changed to propose a smaller run."""


def run_alternatives(
    facts: Facts, ask: Ask, rooms: Sequence[Room], needs_of: Callable[[Ask], list[Need]], smaller: Set[str] = SMALLER
) -> Iterator[tuple[Ask, str]]:
    """Yield smaller runs that would fit, each changed in one respect, with that change in words."""

    def fits(**changed: Any) -> bool:
        return smaller >= changed.keys() and fit(needs_of(replace(ask, **changed)), rooms)

    if tokens := _most(ask.tokens, lambda count: fits(tokens=count)):
        yield replace(ask, tokens=tokens), f"{tokens:,} new tokens"
    if ask.layers and (count := _most(len(ask.layers), lambda count: fits(layers=ask.layers[:count]))):
        yield replace(ask, layers=ask.layers[:count]), f"{count} of the {len(ask.layers)} layers"
    if len(ask.sites) > 1 and (count := _most(len(ask.sites), lambda count: fits(sites=ask.sites[:count]))):
        yield replace(ask, sites=ask.sites[:count]), f"{count} of the {len(ask.sites)} sites"
    if count := _most(ask.top_k, lambda count: fits(top_k=count)):
        yield replace(ask, top_k=count), f"k of at most {count:,}"
    if facts.itemsize == 4 and ask.capture_itemsize is None and fits(capture_itemsize=2):
        yield replace(ask, capture_itemsize=2), "states kept in bfloat16"
    if rooms[0].kind != "cpu" and fits(offload=not ask.offload):
        where = "on the GPUs (without --offload)" if ask.offload else "on the host (--offload)"
        yield replace(ask, offload=not ask.offload), f"states kept {where}"
    if ask.batch > 1 and (count := _most(ask.batch, lambda count: fits(batch=count))):
        yield replace(ask, batch=count), f"{count} of the {ask.batch} prompts at a time"


def _most(below: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number from 1 to ``below − 1`` that fits, or 0."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# -- refusals -------------------------------------------------------------------------------------------------------------


def refuse_run(facts: Facts, ask: Ask, rooms: Sequence[Room], smaller: Set[str] = SMALLER) -> None:
    """Refuse a run that cannot fit beside the loaded model.

    Args:
        smaller: fields of ``ask`` that may be changed to propose a smaller run.

    Raises:
        LensError: it cannot fit; says what it needs, what is free, and what would fit.
    """
    needs = run_needs(facts, ask, rooms, [0] * len(rooms))
    if fit(needs, rooms):
        return
    rank, need, room = _worst(needs, rooms)
    named = {"captures": need.captures, "results": need.results, "keys and values": need.cache, "lens": need.lens}
    parts = ", ".join(f"{name} {size(count)}" for name, count in named.items() if count)

    def needs_of(one: Ask) -> list[Need]:
        return run_needs(facts, one, rooms, [0] * len(rooms))

    fitting = [words for _, words in run_alternatives(facts, ask, rooms, needs_of, smaller)]
    would = f"{' or '.join(fitting)} would fit" if fitting else "more ranks or more memory would do"
    device, host = need.most(room)
    needed, free = (f"{size(host)} of the host's memory", room.host) if device <= room.free else (size(device), room.free)
    raise LensError(f"this run needs {needed} on rank {rank} ({parts}) and {size(free)} is free there; {would}")


def _worst(needs: Sequence[Need], rooms: Sequence[Room]) -> tuple[int, Need, Room]:
    """Return the rank that lacks most, with its need and room."""
    lacking = []
    for need, room in zip(needs, rooms, strict=True):
        device, host = need.most(room)
        lacking.append(max(device - room.free, host - room.host))
    rank = lacking.index(max(lacking))
    return rank, needs[rank], rooms[rank]


def refuse_load(checkpoint: Checkpoint, rooms: Sequence[Room]) -> bool:
    """Refuse to load a model that cannot fit.

    Args:
        rooms: one for each rank the model is to be split over.

    Returns:
        Whether it fits only if the model that is loaded now is dropped first.

    Raises:
        LensError: it cannot fit; says what it needs, what is free, and what would fit.
    """
    from .model import footprint
    from .model.anatomy import most_ranks
    from .model.checkpoint import read_config

    config = read_config(checkpoint.folder)

    def needs_of(dtype: str, ranks: int) -> list[Need]:
        mapped = set(checkpoint.stored) <= {dtype}
        skeleton = footprint.skeleton(config, dtype)
        return load_needs(footprint.weights(skeleton, ranks), spread(rooms, ranks), mapped)

    needs = needs_of(checkpoint.dtype, len(rooms))
    if fit(needs, rooms):
        return False
    emptied = [replace(room, free=room.free + room.model, host=room.host + _on_host(room)) for room in rooms]
    if fit(needs, emptied):
        return True
    would = []
    if checkpoint.dtype == "float32" and fit(needs_of("bfloat16", len(rooms)), emptied):
        would.append("--dtype bfloat16")
    for ranks in (2 * len(rooms), 4 * len(rooms), 8 * len(rooms)):
        if ranks <= most_ranks(config)[0]:
            more, places = needs_of(checkpoint.dtype, ranks), spread(emptied, ranks)
            if fit(more, places):
                most = max(need.most(room)[0] for need, room in zip(more, places, strict=True))
                would.append(f"--ranks {ranks} with as much free on each ({size(most)})")
                break
    rank, need, room = _worst(needs, emptied)
    device, host = need.most(room)
    lacks_host = device <= room.free
    needed, free = (host, room.host) if lacks_host else (device, room.free)
    where = "in the host's memory for each rank" if lacks_host else f"on rank {rank} ({room.device})"
    raise LensError(
        f"{checkpoint.name} in {checkpoint.dtype} needs {size(needed)} {where} and {size(free)} is free; "
        f"{' or '.join(would) or f'{size(needed - free)} more'} would do"
    )


def load_needs(weights: Sequence[Weights], rooms: Sequence[Room], mapped: bool) -> list[Need]:
    """Return what loading needs on every rank: the parameters, and on the host what is converted before it is split."""
    loading = loading_bytes(weights, mapped)
    return [Need(kept, loading=loading) for kept in weight_bytes(weights, rooms, mapped)]


def _on_host(room: Room) -> int:
    return room.model if room.kind == "cpu" else 0
