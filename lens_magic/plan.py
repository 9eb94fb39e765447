"""What a model and a run need on each rank, whether it fits, and what would fit instead (docs/memory.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .errors import LensError
from .needs import Ask, Need, fit, loading_bytes, run_alternatives, run_needs, weight_bytes
from .options import check_top_k, choice, parse_layers, parse_sites
from .prompts import check_room
from .rooms import Room, rooms_here, spread
from .words import counted, dimensions, size

if TYPE_CHECKING:
    from .model.footprint import Facts, Weights


@dataclass(frozen=True)
class Plan:
    """A model and a run on ranks: what is needed, what is free, and if it does not fit, what would."""

    model: str
    facts: Facts
    ask: Ask
    rooms: list[Room]
    needs: list[Need]
    shared: int
    notes: list[str]
    would_fit: list[str]

    @property
    def loading(self) -> int:
        """The host's memory that each rank needs while loading."""
        return self.needs[0].loading

    @property
    def fits(self) -> bool:
        """Whether every rank has what it needs."""
        return fit(self.needs, self.rooms)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; sizes are in bytes."""
        ranks = [
            {
                "rank": rank,
                **asdict(need),
                "total": need.total,
                "device": room.device,
                "free": room.free,
                "fits": need.fits(room),
            }
            for rank, (need, room) in enumerate(zip(self.needs, self.rooms, strict=True))
        ]
        return {
            "model": self.model,
            "dtype": self.facts.dtype,
            "ask": asdict(self.ask),
            "ranks": ranks,
            "shared_by_a_host": self.shared,
            "loading": self.loading,
            "fits": self.fits,
            "would_fit": self.would_fit,
            "notes": self.notes,
        }


def make(
    name: str,
    ranks: int,
    tokens: int,
    prompt: int = 1,
    layers: str | None = None,
    sites: str | None = None,
    dtype: str | None = None,
    batch: int = 1,
    top_k: int = 5,
    whole_prompt: bool = False,
    offload: bool = False,
    tuned: bool = False,
    rooms: Sequence[Room] | None = None,
) -> Plan:
    """Plan a run from a model's configuration alone; nothing is loaded, and no weights need to be there.

    Args:
        name: a folder, a config.json, a hub id (only the configuration is fetched) or "demo".
        rooms: what is free on each rank; None to measure it on this host.

    Raises:
        LensError: there is no such model, or it does not allow what is asked for.
    """
    from .model import checkpoint as checkpoints
    from .model import footprint
    from .model.anatomy import most_ranks
    from .model.folders import config_folder

    dtype = choice("dtype", "auto" if dtype is None else dtype, checkpoints.DTYPES)
    folder = config_folder(name)
    checkpoints.require_no_adapter(name, folder)
    stated, config = checkpoints.stated_in(folder), checkpoints.read_config(folder)
    checkpoints.require_plain_weights(name, stated)
    stored = footprint.stored_dtypes(folder)
    own = dtype == "auto"
    chosen = checkpoints.own_dtype(name, stated, stored) if own else dtype
    facts = footprint.Facts.of(config, chosen)
    checkpoints.require_splittable(name, config, ranks)
    check_room(prompt, tokens, facts.context)
    check_top_k(top_k, facts.vocabulary)
    seen = parse_layers(layers, facts.layers), parse_sites(sites)
    ask = Ask(tokens, prompt, whole_prompt, *seen, batch, offload=offload, tuned=tuned, top_k=top_k)
    rooms = list(rooms) if rooms is not None else rooms_here(ranks)
    said = checkpoints.stated_dtype(stated)
    kept = set(stored or [said or "float32"])
    mapped = kept <= {chosen}
    try:
        skeleton = footprint.skeleton(config, chosen)
    except Exception as error:
        raise checkpoints.unbuildable(name, error) from error
    weights = footprint.weights(skeleton, ranks)
    needs = _needs(facts, ask, rooms, weights, mapped)
    notes = _notes(weights, rooms, mapped, chosen)
    if own and not (said or stored):
        notes.append(f"config.json states no dtype, and no weights are there to tell: {chosen} is assumed")

    def needs_of(changed: Ask, other: str, count: int) -> tuple[list[Need], list[Room]]:
        places = spread(rooms, count)
        split = footprint.weights(footprint.skeleton(config, other), count)
        return _needs(footprint.Facts.of(config, other), changed, places, split, kept <= {other}), places

    others = (kept if len(kept) == 1 else set()) | ({"bfloat16"} if chosen == "float32" else set())
    dtypes = [each for each in checkpoints.DTYPES if each in others - {chosen}]
    would = [] if fit(needs, rooms) else list(_alternatives(facts, ask, rooms, most_ranks(config)[0], dtypes, needs_of))
    shared = weights[0].whole if mapped and rooms[0].kind == "cpu" else 0
    return Plan(name, facts, ask, rooms, needs, shared, notes, would)


def _needs(facts: Facts, ask: Ask, rooms: Sequence[Room], weights: Sequence[Weights], mapped: bool) -> list[Need]:
    loading = loading_bytes(weights, mapped)
    return [replace(need, loading=loading) for need in run_needs(facts, ask, rooms, weight_bytes(weights, rooms, mapped))]


def pretend(ranks: int, free: str, device: str | None = None, host: str | None = None) -> list[Room]:
    """Return the rooms of ranks with a stated free memory: bytes, or a number with kB, MB, GB, TB, KiB, MiB or GiB.

    Args:
        free: of each rank. host: of the host of all of them, this one's if it is not stated.

    Raises:
        LensError: it is not such a number.
    """
    here, count = rooms_here(ranks), _bytes("--free", free)
    kind, share = device or here[0].kind, [room.host for room in here]
    if host is not None:
        share = [_bytes("--free-host", host) // ranks] * ranks
    return [Room(f"cuda:{rank}" if kind == "cuda" else "cpu", count, share[rank]) for rank in range(ranks)]


def _bytes(option: str, given: str) -> int:
    powers = {
        "": 1,
        "b": 1,
        "kb": 10**3,
        "mb": 10**6,
        "gb": 10**9,
        "tb": 10**12,
        "kib": 1 << 10,
        "mib": 1 << 20,
        "gib": 1 << 30,
    }
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", given.strip().lower())
    if match is None or match[2] not in powers:
        raise LensError(f"{option} {given!r} is not a size; 80GB or 512MiB would do")
    return int(float(match[1]) * powers[match[2]])


def _notes(weights: Sequence[Weights], rooms: Sequence[Room], mapped: bool, dtype: str) -> list[str]:
    notes = []
    if rooms[0].kind == "cpu" and mapped and len(weights) > 1:
        notes.append(f"{size(weights[0].whole)} of weights are whole on every rank and shared by a host's: counted once")
    elif len(weights) > 1:
        notes.append(f"{size(weights[0].whole)} of weights are whole on every rank")
    if weights[0].routers and len(weights) > 1:
        notes.append(f"{size(weights[0].routers)} of them are routers, which are not split; experts are")
    if not mapped:
        loading, free = loading_bytes(weights, mapped), rooms[0].free if rooms[0].kind == "cpu" else rooms[0].host
        lacking = f", where {size(free)} is free" if loading > free else ""
        notes.append(f"converting to {dtype} takes {size(loading)} of host memory a rank while loading{lacking}")
    return notes


NeedsOf = Callable[[Ask, str, int], tuple[list[Need], list[Room]]]


def _alternatives(
    facts: Facts, ask: Ask, rooms: Sequence[Room], most: int, dtypes: Sequence[str], needs_of: NeedsOf
) -> Iterator[str]:
    """Yield what would fit, one change at a time.

    Args:
        most: as many ranks as the model can be split over.
        dtypes: others in which it may need less.
    """
    ranks = len(rooms)
    for changed, words in run_alternatives(facts, ask, rooms, lambda one: needs_of(one, facts.dtype, ranks)[0]):
        yield f"{words} ({size(max(need.total for need in needs_of(changed, facts.dtype, ranks)[0]))} a rank)"
    for dtype in dtypes:
        needs, places = needs_of(ask, dtype, ranks)
        if fit(needs, places):
            yield f"--dtype {dtype} ({size(max(need.total for need in needs))} a rank)"
    more = ranks * 2
    while more <= most:
        needs, places = needs_of(ask, facts.dtype, more)
        if fit(needs, places):
            yield f"--ranks {more} ({size(max(need.total for need in needs))} a rank, as much free on each)"
            return
        more *= 2


def table(plan: Plan) -> str:
    """Format a plan for a terminal; neighbouring ranks with the same figures share a row."""
    lines = [
        f"{plan.model}, {plan.facts.dtype}, {counted(len(plan.rooms), 'rank')}:",
        _asked(plan.ask),
        "",
    ]
    lens = ("tuned lens",) if plan.ask.tuned else ()
    host = ("on host", "free there") if plan.ask.offload and plan.rooms[0].kind != "cpu" else ()
    columns = (
        "rank",
        "weights",
        "KV cache",
        "captures",
        "results",
        *lens,
        "forward",
        "projection",
        "in all",
        "free",
        *host,
        "",
    )
    rows: list[tuple[str, ...]] = [columns]
    for first, last, need, room in _alike(plan.needs, plan.rooms):
        name = str(first) if first == last else f"{first}–{last}"
        own = (need.weights, need.cache, need.captures, need.results, *([need.lens] if lens else []))
        parts = (*own, need.forward, need.projection, need.total, room.free, *((need.on_host, room.host) if host else ()))
        rows.append((name, *map(size, parts), "fits" if need.fits(room) else "too large"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    lines += ["  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *(f"{note[0].upper()}{note[1:]}." for note in plan.notes)]
    if plan.fits:
        lines.append("It fits.")
    elif plan.would_fit:
        lines += ["It does not fit. Each of these alone would:", *(f"  {one}" for one in plan.would_fit)]
    else:
        lines.append("It does not fit, and no single change would make it.")
    return "\n".join(lines)


def _asked(ask: Ask) -> str:
    states = dimensions(layer=len(ask.layers), site=len(ask.sites), position=ask.rows)
    prompts = f"{f'{ask.batch} prompts' if ask.batch > 1 else 'a prompt'} of {counted(ask.prompt, 'token')}"
    return f"{counted(ask.tokens, 'new token')} after {prompts}, {states}{', kept on the host' if ask.offload else ''}"


def _alike(needs: Sequence[Need], rooms: Sequence[Room]) -> Iterator[tuple[int, int, Need, Room]]:
    """Yield groups of neighbouring ranks with the same figures: first rank, last rank, their need and their room."""
    first = 0
    for rank in range(1, len(needs) + 1):
        if rank == len(needs) or (needs[rank], rooms[rank].free) != (needs[first], rooms[first].free):
            yield first, rank - 1, needs[first], rooms[first]
            first = rank
