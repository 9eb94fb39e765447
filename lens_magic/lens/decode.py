"""Deferred projection: captured states → final norm → head, and what is kept of every cell's distribution.

The vocabulary is split over the ranks. A block of cells is shared with all ranks, each multiplies it with its own rows of
the head, and sends k candidates and a few sums per cell; rank 0 combines them into exact figures over the whole
vocabulary. Logits exist only for one block at a time, so memory does not grow with the number of tokens or layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..model.load import Loaded
from ..model.products import CONVERTED_ELEMENTS
from ..model.sites import Key
from ..ranks.memory import free_memory
from ..ranks.rank import Rank
from .capture import Trajectories
from .combine import Block, combine
from .figures import Output, cells_in_tile, read
from .projector import Projector
from .tracking import Tracked, trimmed
from .variables import TRACKED, VARIABLES

# Bytes and cells of one block's logits on one rank, if memory allows. A matrix product needs a few hundred cells to be
# efficient, more if 16-bit weights are converted for each block. On a CPU, 512 cells instead of 256 save an eighth of the
# projection time but take twice the workspace, which with a small vocabulary is the largest part of a run's memory.
_BLOCK_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}
_BLOCK_CELLS = {"cpu": 256, "cuda": 4096}
# Share of free memory for a block's logits; there may also be the output's, twice as large, a tile's scratch and the states.
_SHARE_OF_FREE = 1 / 8
# Positions in a block. Progress is reported between blocks; smaller ones would mean many small exchanges.
_MOST_POSITIONS, _FEWEST_POSITIONS = 256, 64
_FOLLOWED = {"tracked_id": np.int32, **TRACKED}


def project(
    rank: Rank,
    loaded: Loaded,
    projector: Projector,
    trajectories: Trajectories,
    first: int,
    targets: Sequence[int],
    k: int,
    sequence: int = 0,
    aside: bool = False,
) -> tuple[dict[str, np.ndarray] | None, bool]:
    """Turn captured states into the lens's variables. Collective; stops between blocks when interrupted.

    Args:
        projector: the lens.
        first: the first captured row to project.
        targets: the token that follows each position from there on; as many positions are projected.
        k: candidates per cell.
        sequence: index of the sequence in the batch.
        aside: called during a generation, which itself reports progress and checks for interrupts.

    Returns:
        On rank 0 the variables, ``[site, layer, position(, k)]`` for the positions done, else None; and whether it was
        interrupted.
    """
    plan, look = trajectories.plan, projector.look
    total, cells_at_once = len(targets), most_cells(rank, loaded, -(-projector.size // rank.size))
    positions_at_once = _positions_at_once(total, len(plan.keys), cells_at_once)
    if look.track_first:  # the logits of all layers are kept until the tokens that lead in any of them are known
        positions_at_once = max(1, min(positions_at_once, cells_at_once // (len(plan.keys) + 1)))
    candidates, followed = min(k, projector.size), len(look.track) or look.track_first
    whole = _room(len(plan.keys), total if rank.rank == 0 else 0, candidates, followed)
    done, interrupted = 0, False
    with torch.inference_mode():
        for begin in range(0, total, positions_at_once):
            end = min(total, begin + positions_at_once)
            rows = Rows(trajectories, first + begin, first + end, sequence)
            heed = rank.agree_to_stop if not aside else _never
            here = {name: values[:, begin:end] for name, values in whole.items()}
            interrupted = not _positions(rank, loaded, projector, rows, targets[begin:end], k, cells_at_once, heed, here)
            if interrupted:
                rank.acknowledge_stop()
                break
            done = end
            if not aside:
                rank.emit(("projecting", end, total))
    if rank.rank != 0:
        return None, interrupted
    shape = (len(plan.layers), len(plan.sites))
    # [layer · site, position(, k)] → [site, layer, position(, k)]
    ordered = {name: np.swapaxes(v.reshape(*shape, *v.shape[1:])[:, :, :done], 0, 1) for name, v in whole.items()}
    return trimmed(ordered), interrupted


def block_bytes(device: str, free: int) -> int:
    """Return the bytes for one block's logits on a rank with ``free`` bytes free; device is "cpu" or "cuda"."""
    return min(_BLOCK_BYTES[device], int(free * _SHARE_OF_FREE))


def workspace_bytes(
    device: str,
    free: int,
    rows: int,
    width: int,
    itemsize: int,
    keys: int,
    total: int,
    softcapped: bool,
    k: int = 0,
    ranks: int = 1,
    rank: int = 0,
) -> int:
    """Return the bytes that projecting needs at a time on one rank, however many positions and layers there are in all.

    Args:
        free: bytes free on the rank with the least.
        rows: vocabulary rows on this rank.
        itemsize: bytes per number of the model's dtype.
        keys, total: numbers of (site, layer) pairs and of positions in the run.
        k: candidates per cell.
    """
    if not keys:
        return 0
    room = _cells_in(device, block_bytes(device, free), rows)
    positions = _positions_at_once(total, keys, room)
    cells = min(keys, max(1, room // positions)) * positions
    logits = 4 * rows * (cells * (3 if softcapped else 1) + 2 * positions)
    scratch = 4 * rows * cells_in_tile(device, rows, cells)
    converted = 4 * CONVERTED_ELEMENTS if device == "cpu" and itemsize < 4 else 0
    candidates = cells * _bytes_of_candidates(k, rows, ranks, rank)
    return logits + scratch + min(converted, 4 * rows * width) + cells * width * (2 * itemsize + 8) + candidates


def _bytes_of_candidates(k: int, rows: int, ranks: int, rank: int) -> int:
    """Return the bytes of one cell's candidates, 8 for each number, at the time when there are most.

    On one rank they are combined as they are found. Ranks pack them for an exchange, which takes what it returns twice. Rank 0
    also has the block before, on its way to the host.
    """
    found = min(k, rows)
    exchanged = 32 * ranks * found if ranks > 1 else 0
    return 48 * found + exchanged + (8 * ranks * found + 24 * k if rank == 0 else 0)


def result_bytes(keys: int, positions: int, k: int, tracked: int) -> int:
    """Return the bytes of the variables that rank 0 keeps, as :func:`_room` allocates them."""
    each = [np.dtype(dtype).itemsize * (k if per_candidate else 1) for per_candidate, dtype in VARIABLES.values()]
    followed = sum(np.dtype(dtype).itemsize for dtype in _FOLLOWED.values())
    return keys * positions * (sum(each) + followed * tracked)


def most_cells(rank: Rank, loaded: Loaded, widest: int) -> int:
    """Return how many cells with ``widest`` rows fit one block on every rank. Collective, so that all ranks cut alike."""
    room = block_bytes(loaded.device.type, free_memory(rank, loaded.device))
    agreed = rank.all_reduce(torch.tensor([room], device=loaded.device), "min")
    return _cells_in(loaded.device.type, int(agreed), widest)


def _cells_in(device: str, room: int, rows: int) -> int:
    """Return how many cells with ``rows`` rows make a block of at most ``room`` bytes."""
    return max(1, min(room // (4 * rows), _BLOCK_CELLS[device]))


def _positions_at_once(total: int, keys: int, cells_at_once: int) -> int:
    """Return how many positions to project at a time: as many as let all keys fit one block, within the limits above."""
    wished = min(max(cells_at_once // keys, _FEWEST_POSITIONS), _MOST_POSITIONS)
    return max(1, min(total, cells_at_once, wished))


@dataclass(frozen=True)
class Rows:
    """Rows ``begin`` … ``end − 1`` of one sequence's trajectories."""

    trajectories: Trajectories
    begin: int
    end: int
    sequence: int

    def __len__(self) -> int:
        return self.end - self.begin


def _positions(
    rank: Rank,
    loaded: Loaded,
    projector: Projector,
    rows: Rows,
    targets: Sequence[int],
    k: int,
    cells_at_once: int,
    stop: Callable[[], bool],
    into: Mapping[str, np.ndarray],
) -> bool:
    """Project all sites and layers of some positions; only rank 0 combines the figures.

    Args:
        into: arrays that rank 0 writes to, ``[keys, positions(, k)]``; joining blocks afterwards would take twice the memory.

    Returns:
        Whether it finished without being interrupted.
    """
    places = {key: place for place, key in enumerate(rows.trajectories.plan.keys)}
    target_ids = torch.tensor(targets, device=loaded.device) if projector.has_targets else None
    logits_of, output = looking(rank, loaded, projector, rows)
    batches = list(_batches(rows.trajectories, output is None, max(1, cells_at_once // len(rows))))
    tracked = Tracked.chosen(projector.look.track, len(rows), loaded.device)
    kept: dict[int, torch.Tensor] = {}
    before: tuple[list[int], OnTheWay] | None = None  # the previous block, whose figures may still be on their way
    if projector.look.track_first:
        kept = {number: logits_of(keys) for number, keys in enumerate(batches)}
        every, flat = [key for keys in batches for key in keys], [logits.flatten(0, 1) for logits in kept.values()]
        tracked = Tracked.ranked_first(rank, projector.head, every, flat, len(rows), projector.look.track_first, places)
    for number, keys in enumerate(batches):
        if stop():
            return False
        logits = kept.pop(number) if kept else logits_of(keys)  # [keys, positions, rows]
        if output is None:
            output = Output.of(logits[0].clone())
            if keys[0] not in places:
                keys, logits = keys[1:], logits[1:]
                if not keys:
                    continue
        followed = tracked.logits(rank, projector.head, logits.flatten(0, 1)) if tracked else None
        shared = _share_block(rank, projector, _block(rank, projector, logits, output, target_ids, k), k)
        del logits  # before the next block's are made
        if rank.rank == 0:
            figures, log_sum_exp = combine(shared, min(k, projector.size))
            if target_ids is None:
                figures["target_rank"].fill_(-1)
                figures["target_prob"].fill_(torch.nan)
            if followed is not None:
                figures |= tracked.figures(*followed, log_sum_exp)
            block = [places[key] for key in keys], OnTheWay(figures)
            if before is not None:
                _write(*before, into)
            before = block
    if before is not None:
        _write(*before, into)
    return True


class OnTheWay:
    """Tensors being copied to the host. A GPU gets its next work before anything waits for the copies."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._there = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        device = next(iter(tensors.values())).device
        self._gone = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def arrived(self) -> dict[str, np.ndarray]:
        """Wait for the copies and return them as arrays."""
        if self._gone is not None:
            self._gone.synchronize()
        return {name: tensor.numpy() for name, tensor in self._there.items()}


def _write(at: Sequence[int], figures: OnTheWay, into: Mapping[str, np.ndarray]) -> None:
    """Write a block's figures, ``[keys · positions(, k)]``, to the places of its keys."""
    for name, values in figures.arrived().items():
        into[name][at] = values.reshape(len(at), -1, *values.shape[1:])


def _never() -> bool:
    return False


def looking(
    rank: Rank, loaded: Loaded, projector: Projector, rows: Rows
) -> tuple[Callable[[Sequence[Key]], torch.Tensor], Output | None]:
    """Return a function from keys to logits ``[keys, positions, rows]``, and the model's own output.

    The output is None if it is itself one of the cells, which then has to come first: a pass over the head's weights for it
    alone would cost as much as one for many cells.
    """
    trajectories = rows.trajectories
    final: torch.Tensor | None = None
    if not projector.output_is_a_cell:
        final = trajectories.share(rank, trajectories.output, rows.begin, rows.end, rows.sequence).to(loaded.dtype)

    def logits_of(keys: Sequence[Key]) -> torch.Tensor:
        states = _share(rank, projector, rows, keys).to(loaded.dtype)  # [keys, positions, d]
        return projector.logits(keys, states, final).view(*states.shape[:2], -1)

    return logits_of, None if final is None else Output.of(projector.output(final))


def _batches(trajectories: Trajectories, output_first: bool, most: int) -> Iterator[list[Key]]:
    """Yield the requested keys, at most ``most`` at a time. Neighbours have different owners, so every rank shares some.

    Args:
        output_first: put the model's output first, requested or not, because every cell is compared with it.
    """
    keys = list(dict.fromkeys([*([trajectories.output] if output_first else []), *trajectories.plan.keys]))
    for first in range(0, len(keys), most):
        yield keys[first : first + most]


def _share(rank: Rank, projector: Projector, rows: Rows, keys: Sequence[Key]) -> torch.Tensor:
    """Return the states of several keys on every rank, ``[keys, positions, d]``, in one exchange.

    The rank that keeps a state also translates it, so this work is divided as the states are.
    """
    trajectories = rows.trajectories
    kept = [(key, trajectories.mine(key, rows.begin, rows.end, rows.sequence)) for key in keys]
    owned = [projector.translated(key, states) for key, states in kept if states is not None]
    if rank.size == 1:
        return torch.stack(owned)
    owners = [trajectories.owner(key) for key in keys]
    slots = max(owners.count(number) for number in range(rank.size))
    mine = trajectories.empty((slots, len(rows), trajectories.buffer.shape[-1]))
    for slot, states in enumerate(owned):
        mine[slot].copy_(states)
    shared = rank.all_gather(mine)  # [ranks, slots, positions, d]
    places = [owners[:index].count(number) for index, number in enumerate(owners)]
    return torch.stack([shared[owner, place] for owner, place in zip(owners, places, strict=True)])  # does not wait for the GPU


def _block(
    rank: Rank, projector: Projector, logits: torch.Tensor, output: Output, target_ids: torch.Tensor | None, k: int
) -> Block:
    """Return this rank's figures for a block of cells.

    Args:
        logits: ``[keys, positions, rows]``, overwritten.
        output: the model's own distribution at the positions.
        target_ids: ``[positions]``; None if the rows are not tokens.
    """
    keys, positions, rows = logits.shape
    head, shape = projector.head, (keys, positions)
    if target_ids is None:
        target = logits.new_full((keys * positions,), torch.inf)
    else:
        target = head.logits_at(rank, logits.view(-1, rows), target_ids.repeat(keys)[:, None])[:, 0]
    values, ids, found = read(logits, target.view(shape), output, min(k, head.rows))
    largest, total = values[..., 0].double(), output.total.double()
    # Σ exp(F − f)(F − z): both sums are relative to the largest logits f and m, so the difference of these is added back
    difference = output.own.double() - found.crossed.double() + (output.largest.double() - largest) * total
    columns = [largest, found.total, found.weighted, output.largest.expand(shape), total.expand(shape), difference, found.above]
    sums = torch.stack([column.double().reshape(-1) for column in columns], -1)
    candidates = (values.flatten(0, 1).double(), (ids.flatten(0, 1) + head.offset).double())
    return Block(*candidates, sums, target.double())


def _share_block(rank: Rank, projector: Projector, block: Block, k: int) -> list[Block]:
    """Return every rank's figures for a block. Collective."""
    if rank.size == 1:
        return [block]
    counts = [min(k, rows) for rows in projector.rows_of_ranks(rank.size)]
    missing = max(counts) - block.values.shape[1]
    candidates = [F.pad(each, (0, missing)) for each in (block.values, block.ids)]
    packed = rank.all_gather(torch.cat([*candidates, block.sums, block.target[:, None]], -1))
    widest = max(counts)
    return [
        Block(mine[:, :count], mine[:, widest : widest + count], mine[:, 2 * widest : -1], mine[:, -1])
        for mine, count in zip(packed, counts, strict=True)
    ]


def _room(keys: int, positions: int, k: int, tracked: int) -> dict[str, np.ndarray]:
    """Allocate the variables, ``[keys, positions(, k)]``."""
    room = {
        name: np.empty((keys, positions, k) if per_candidate else (keys, positions), dtype)
        for name, (per_candidate, dtype) in VARIABLES.items()
    }
    followed = _FOLLOWED if tracked else {}
    return room | {name: np.empty((keys, positions, tracked), dtype) for name, dtype in followed.items()}
