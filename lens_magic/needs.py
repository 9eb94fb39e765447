"""What a model and a run need on each rank, what is there, and the refusal where that is too little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .errors import LensError

if TYPE_CHECKING:
    from .model.checkpoint import Checkpoint
    from .model.footprint import Facts, Weights
    from .ranks.rank import Rank


@dataclass(frozen=True)
class Room:
    """What one rank has free.

    Attributes:
        device: "cpu" or "cuda:0" …
        free: bytes on it.
        host: bytes of its share of the host's memory.
        model: bytes of the model that is loaded there now, which loading another one gives back in the end.
    """

    device: str
    free: int
    host: int
    model: int = 0

    @property
    def kind(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]


@dataclass(frozen=True)
class Ask:
    """A run: so many new tokens after prompts of so many, seen at layers and sites.

    Attributes:
        whole_prompt: the prompt's positions are captured too.
        layers, sites: none for a model that is only loaded.
        capture_itemsize: bytes of a captured number; the model's where None.
        offload: captured states are kept in the host's memory.
        forced: the new tokens are known, and read with the prompt in one forward.
        tuned: looked at through a tuned lens, whose translators go where their states are.
        directions: of a basis, which is split as the vocabulary is; 0 for none.
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

    @property
    def columns(self) -> int:
        """Tokens of each sequence that are read; the last generated one never is."""
        return self.prompt + max(0, self.tokens - 1)

    @property
    def rows(self) -> int:
        """Captured positions of each sequence."""
        return self.tokens + (self.prompt - 1 if self.whole_prompt else 0)


@dataclass(frozen=True)
class Need:
    """Bytes on one rank.

    Attributes:
        weights: parameters; on a CPU what all ranks of a host share is divided among them.
        cache: keys and values.
        captures: captured states (on the host where they are offloaded).
        forward: the model's activations in the prefill, roughly.
        projection: workspace of the projection. It and ``forward`` are not needed at once.
        lens: this rank's translators of a tuned lens, or rows of a basis.
        on_host: of ``captures``, what is in the host's memory besides a GPU's.
    """

    weights: int
    cache: int = 0
    captures: int = 0
    forward: int = 0
    projection: int = 0
    lens: int = 0
    on_host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the rank's device at most."""
        return self.weights + self.cache + self.captures - self.on_host + self.lens + max(self.forward, self.projection)

    def fits(self, room: Room) -> bool:
        """Whether the device and the host have so much."""
        return self.total <= room.free and self.on_host <= room.host


def facts_of(config: Any, dtype: str) -> Facts | None:
    """A model's measures, or None where its configuration does not tell them."""
    from .model.footprint import Facts

    try:
        return Facts.of(config, dtype)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def run_needs(facts: Facts, ask: Ask, rooms: Sequence[Room], weights: Sequence[int]) -> list[Need]:
    """What a run takes on every rank.

    Args:
        rooms, weights: for each rank what it has free and the bytes of its parameters; 0 where they are there already.
    """
    from .lens.decode import workspace_bytes
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
        work = (room.kind, least, rows, facts.width, facts.itemsize, len(kept), ask.rows, facts.softcapped)
        found.append(
            Need(
                weights=weights[rank],
                cache=cache_bytes(facts, ranks, rank, ask.columns, ask.batch),
                captures=captures + state * facts.itemsize,
                forward=forward_bytes(facts, ranks, ask.columns if ask.forced else ask.prompt, ask.batch),
                projection=workspace_bytes(*work) if kept else 0,
                lens=_lens_bytes(facts, ask, kept[rank::ranks], ranks),
                on_host=captures if offloaded else 0,
            )
        )
    return found


def _lens_bytes(facts: Facts, ask: Ask, keys: Sequence[tuple[str, int]], ranks: int) -> int:
    """What of a tuned lens or a basis goes to a rank that keeps states of these (site, layer)s, in float32."""
    from .lens.translators import translator_of

    if ask.directions:
        return -(-ask.directions // ranks) * facts.width * 4
    if not ask.tuned:
        return 0
    translators = {translator_of(site, layer, facts.layers) for site, layer in keys} - {None}
    return len(translators) * (facts.width + 1) * facts.width * 4


def weight_bytes(weights: Sequence[Weights], rooms: Sequence[Room], mapped: bool) -> list[int]:
    """Bytes of the parameters each rank answers for, once loaded.

    On a CPU whatever is used as it stands in the file is mapped: ranks of a host share those pages, and each is counted
    once. What has been converted to another type is every rank's own, and the head is not cut then.
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
    """Bytes each rank needs on the host while it loads: a checkpoint in another type is converted before it is split."""
    return 0 if mapped else sum(one.split + one.head for one in weights) + weights[0].whole


# -- what is free ---------------------------------------------------------------------------------------------------------


def rooms_here(ranks: int, before: Sequence[Room] = ()) -> list[Room]:
    """What each of so many ranks on this host would have free, before they are started.

    Args:
        before: ranks there are now and which will end, so that what their model takes can be had.
    """
    import torch

    from .ranks.memory import host_memory, stated_memory

    host, stated = host_memory() // ranks, stated_memory()
    if not torch.cuda.is_available():
        model = sum(room.model for room in before) // ranks
        return [Room("cpu", host if stated is None else stated, host, model)] * ranks
    devices = torch.cuda.device_count()
    free = [torch.cuda.mem_get_info(device)[0] // len(range(device, ranks, devices)) for device in range(min(devices, ranks))]
    found = []
    for rank in range(ranks):
        device = rank % devices
        model = sum(room.model for room in before if room.device == f"cuda:{device}") // len(range(device, ranks, devices))
        found.append(Room(f"cuda:{device}", free[device] if stated is None else stated, host, model))
    return found


def room_of_rank(rank: Rank, run: bool = False) -> Room:
    """What this rank has free.

    Args:
        run: for the next captured run, which drops the last one's states and lens, so that they count as free.
    """
    from .lens.projector import bytes_held
    from .ranks.collectives import device_for
    from .ranks.memory import free_memory, host_memory, own_bytes, pinned_bytes

    device = device_for(rank)
    kept = rank.store.get("trajectories") if run else None
    here = kept is not None and kept[1].buffer.device.type == device.type
    dropped = kept[1].nbytes if kept is not None and here else 0
    unpinned = pinned_bytes(kept[1].nbytes) if kept is not None and not here else 0
    if run and "lens" in rank.store:
        dropped += bytes_held(rank.store["lens"][1])
    loaded = rank.store.get("model")
    own = own_bytes(loaded.model.parameters()) if loaded is not None else 0
    return Room(str(device), free_memory(rank, device) + dropped, host_memory() // rank.local_size + unpinned, own)


def fit(needs: Sequence[Need], rooms: Sequence[Room]) -> bool:
    """Whether every rank has what it needs."""
    return all(need.fits(room) for need, room in zip(needs, rooms, strict=True))


SMALLER = frozenset({"tokens", "layers", "sites", "capture_itemsize", "offload", "batch"})
"""What of a run a user may ask for in less."""


def run_alternatives(
    facts: Facts, ask: Ask, rooms: Sequence[Room], needs_of: Callable[[Ask], list[Need]], smaller: Set[str] = SMALLER
) -> Iterator[tuple[Ask, str]]:
    """Smaller runs that would fit: changed in one respect each, with the words of the option."""

    def fits(**changed: Any) -> bool:
        return smaller >= changed.keys() and fit(needs_of(replace(ask, **changed)), rooms)

    if tokens := _most(ask.tokens, lambda count: fits(tokens=count)):
        yield replace(ask, tokens=tokens), f"{tokens:,} new tokens"
    if ask.layers and (count := _most(len(ask.layers), lambda count: fits(layers=ask.layers[:count]))):
        yield replace(ask, layers=ask.layers[:count]), f"{count} of the {len(ask.layers)} layers"
    if len(ask.sites) > 1 and (count := _most(len(ask.sites), lambda count: fits(sites=ask.sites[:count]))):
        yield replace(ask, sites=ask.sites[:count]), f"{count} of the {len(ask.sites)} sites"
    if facts.itemsize == 4 and ask.capture_itemsize is None and fits(capture_itemsize=2):
        yield replace(ask, capture_itemsize=2), "states kept in bfloat16"
    if rooms[0].kind != "cpu" and not ask.offload and fits(offload=True):
        yield replace(ask, offload=True), "states kept on the host (--offload)"
    if ask.batch > 1 and (count := _most(ask.batch, lambda count: fits(batch=count))):
        yield replace(ask, batch=count), f"{count} of the {ask.batch} prompts at a time"


def _most(below: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to ``below − 1`` that fits, or 0."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def size(count: int) -> str:
    """Bytes for a reader."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            value = count / 10**power
            return f"{value:,.1f} {unit}" if value < 100 else f"{value:,.0f} {unit}"
    return f"{count} bytes"


# -- refusals -------------------------------------------------------------------------------------------------------------


def refuse_run(facts: Facts, ask: Ask, rooms: Sequence[Room], smaller: Set[str] = SMALLER) -> None:
    """Refuse a run on a loaded model that cannot fit.

    Args:
        smaller: what of it may be proposed in less.

    Raises:
        LensError: with what it needs, what is free, and what would fit.
    """
    needs = run_needs(facts, ask, rooms, [0] * len(rooms))
    if fit(needs, rooms):
        return
    rank, need, room = _worst(needs, rooms)
    named = {"captures": need.captures, "keys and values": need.cache, "lens": need.lens}
    parts = ", ".join(f"{name} {size(count)}" for name, count in named.items() if count)

    def needs_of(one: Ask) -> list[Need]:
        return run_needs(facts, one, rooms, [0] * len(rooms))

    fitting = [words for _, words in run_alternatives(facts, ask, rooms, needs_of, smaller)]
    would = f"{' or '.join(fitting)} would fit" if fitting else "more ranks or more memory would do"
    lacks_host = need.total <= room.free
    needed, free = (f"{size(need.on_host)} of the host's memory", room.host) if lacks_host else (size(need.total), room.free)
    raise LensError(f"this run needs {needed} on rank {rank} ({parts}) and {size(free)} is free there; {would}")


def _worst(needs: Sequence[Need], rooms: Sequence[Room]) -> tuple[int, Need, Room]:
    """The rank that lacks most."""
    lacking = [max(need.total - room.free, need.on_host - room.host) for need, room in zip(needs, rooms, strict=True)]
    rank = lacking.index(max(lacking))
    return rank, needs[rank], rooms[rank]


def refuse_load(checkpoint: Checkpoint, rooms: Sequence[Room]) -> bool:
    """Refuse to load a model that cannot fit.

    Args:
        rooms: one for each rank it is to be split over.

    Returns:
        Whether it fits only where the model loaded now goes first.

    Raises:
        LensError: with what it needs, what is free, and what would fit.
    """
    from .model import footprint
    from .model.checkpoint import read_config

    config = read_config(checkpoint.folder)
    stored = footprint.stored_dtypes(checkpoint.folder)

    def needs_of(dtype: str, ranks: int) -> list[Need]:
        mapped = stored <= {dtype}
        skeleton = footprint.skeleton(config, dtype, checkpoint.trust_remote_code)
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
        if ranks <= int(config.get_text_config().num_attention_heads):
            more = needs_of(checkpoint.dtype, ranks)
            if fit(more, spread(emptied, ranks)):
                would.append(f"--ranks {ranks} with as much free on each ({size(max(need.total for need in more))})")
                break
    rank, need, room = _worst(needs, emptied)
    lacks_host = need.total <= room.free
    needed, free = (need.on_host, room.host) if lacks_host else (need.total, room.free)
    where = "in the host's memory for each rank" if lacks_host else f"on rank {rank} ({room.device})"
    raise LensError(
        f"{checkpoint.name} in {checkpoint.dtype} needs {size(needed)} {where} and {size(free)} is free; "
        f"{' or '.join(would) or f'{size(needed - free)} more'} would do"
    )


def load_needs(weights: Sequence[Weights], rooms: Sequence[Room], mapped: bool) -> list[Need]:
    """What loading takes on every rank: the parameters, and on the host what is converted before it is split."""
    loading = loading_bytes(weights, mapped)
    found = []
    for room, kept in zip(rooms, weight_bytes(weights, rooms, mapped), strict=True):
        found.append(Need(weights=max(kept, loading)) if room.kind == "cpu" else Need(kept, captures=loading, on_host=loading))
    return found


def _on_host(room: Room) -> int:
    return room.model if room.kind == "cpu" else 0


def spread(rooms: Sequence[Room], ranks: int) -> list[Room]:
    """The same for another number of ranks: each with a device of its own, or on a CPU with its share of the host."""
    if ranks == len(rooms):
        return list(rooms)
    first = rooms[0]
    if first.kind != "cpu":
        return [replace(first, device=f"cuda:{rank}") for rank in range(ranks)]
    return [replace(first, free=first.free * len(rooms) // ranks, host=first.host * len(rooms) // ranks)] * ranks
