"""Deferred projection: captured states → final norm → head, and what is kept of every cell's distribution.

The vocabulary is split over the ranks. A block of cells is shared with all ranks, each multiplies it with its own rows of
the head, and sends k candidates and a few sums a cell; rank 0 combines them into exact figures over the whole
vocabulary. Logits exist only for one block at a time, so memory does not grow with the number of tokens or layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..model.head import CONVERTED_ELEMENTS
from ..model.load import Loaded
from ..model.sites import Key
from ..ranks.memory import free_memory
from ..ranks.rank import Rank
from .capture import Trajectories
from .combine import Block, combine
from .figures import Output, cells_in_tile, read
from .projector import Projector
from .tracking import Tracked, trimmed
from .variables import TRACKED, VARIABLES

# Room for one block's logits on one rank, where memory allows. A matrix product wants some hundred cells to be efficient,
# the more where 16-bit weights are converted for each block. On a CPU 512 cells in place of 256 save an eighth of the time
# that projecting takes, for twice the workspace, which with a small vocabulary is what a run needs most memory for.
_BLOCK_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}
_BLOCK_CELLS = {"cpu": 256, "cuda": 4096}
# Of what is free: besides a block's logits there may be the output's, twice as large, a tile's scratch and the states.
_SHARE_OF_FREE = 1 / 8
# Progress is told between blocks of positions; few at a time would make many small exchanges.
_MOST_POSITIONS, _FEWEST_POSITIONS = 256, 64


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
        first: the first captured row to be projected.
        targets: the token that follows each position from there on, for as many positions as are to be projected.
        k: candidates a cell.
        sequence: which one of a batch.
        aside: during a generation, which reports progress and heeds interrupts itself.

    Returns:
        On rank 0 the variables, ``[site, layer, position(, k)]`` for the positions done, else None; and whether it was
        interrupted.
    """
    plan, look = trajectories.plan, projector.look
    total, cells_at_once = len(targets), most_cells(rank, loaded, -(-projector.size // rank.size))
    positions_at_once = _positions_at_once(total, len(plan.keys), cells_at_once)
    if look.track_first:  # which tokens lead in any layer is known when all layers are: their logits are kept till then
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
    """Room for one block's logits on a rank that has so many bytes free; device is "cpu" or "cuda"."""
    return min(_BLOCK_BYTES[device], int(free * _SHARE_OF_FREE))


def workspace_bytes(
    device: str, free: int, rows: int, width: int, itemsize: int, keys: int, total: int, softcapped: bool
) -> int:
    """What projecting needs at a time on one rank, however many positions and layers there are in all.

    Args:
        free: the least any rank has free.
        rows: of the vocabulary on this rank.
        itemsize: bytes of a number of the model.
        keys, total: (site, layer) pairs and positions of the run.
    """
    room = _cells_in(device, block_bytes(device, free), rows)
    positions = _positions_at_once(total, keys, room)
    cells = min(keys, max(1, room // positions)) * positions
    logits = 4 * rows * (cells * (3 if softcapped else 1) + 2 * positions)
    scratch = 4 * rows * cells_in_tile(device, rows, cells)
    converted = 4 * CONVERTED_ELEMENTS if device == "cpu" and itemsize < 4 else 0
    return logits + scratch + min(converted, 4 * rows * width) + cells * width * (2 * itemsize + 8)


def most_cells(rank: Rank, loaded: Loaded, widest: int) -> int:
    """How many cells' logits, of so many rows, fit one block on every rank; collective, as all ranks have to cut alike."""
    room = block_bytes(loaded.device.type, free_memory(rank, loaded.device))
    agreed = rank.all_reduce(torch.tensor([room], device=loaded.device), "min")
    return _cells_in(loaded.device.type, int(agreed), widest)


def _cells_in(device: str, room: int, rows: int) -> int:
    """How many cells' logits make a block in so many bytes."""
    return max(1, min(room // (4 * rows), _BLOCK_CELLS[device]))


def _positions_at_once(total: int, keys: int, cells_at_once: int) -> int:
    """How many positions a block of positions has: all keys at once if they fit, within what is sensible."""
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
    """All sites and layers of some positions; ranks above 0 do not combine the figures.

    Args:
        into: where rank 0 writes them, ``[keys, positions(, k)]``: blocks joined later would need twice the memory.

    Returns:
        Whether it was done, and not interrupted.
    """
    places = {key: place for place, key in enumerate(rows.trajectories.plan.keys)}
    target_ids = torch.tensor(targets, device=loaded.device) if projector.has_targets else None
    logits_of, output = looking(rank, loaded, projector, rows)
    batches = list(_batches(rows.trajectories, output is None, max(1, cells_at_once // len(rows))))
    tracked = Tracked.chosen(projector.look.track, len(rows), loaded.device)
    kept: dict[int, torch.Tensor] = {}
    before: tuple[list[int], OnTheWay] | None = None  # the block before, whose figures may not be here yet
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
    """Tensors on their way to the host: a GPU is given its next work before anybody waits for them."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._there = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        device = next(iter(tensors.values())).device
        self._gone = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def arrived(self) -> dict[str, np.ndarray]:
        """Waits for them."""
        if self._gone is not None:
            self._gone.synchronize()
        return {name: tensor.numpy() for name, tensor in self._there.items()}


def _write(at: Sequence[int], figures: OnTheWay, into: Mapping[str, np.ndarray]) -> None:
    """A block's figures ``[keys · positions(, k)]`` to where their keys belong."""
    for name, values in figures.arrived().items():
        into[name][at] = values.reshape(len(at), -1, *values.shape[1:])


def _never() -> bool:
    return False


def looking(
    rank: Rank, loaded: Loaded, projector: Projector, rows: Rows
) -> tuple[Callable[[Sequence[Key]], torch.Tensor], Output | None]:
    """How keys become logits ``[keys, positions, rows]``, and the model's own output.

    The output is None where it is itself a cell, which has to come first then: a pass over the head's weights for it alone
    would cost as much as for many cells.
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
    """The keys asked for, at most ``most`` at a time; neighbours have different owners, so that every rank shares some.

    Args:
        output_first: the model's output comes before them, asked for or not: it is compared with all.
    """
    keys = list(dict.fromkeys([*([trajectories.output] if output_first else []), *trajectories.plan.keys]))
    for first in range(0, len(keys), most):
        yield keys[first : first + most]


def _share(rank: Rank, projector: Projector, rows: Rows, keys: Sequence[Key]) -> torch.Tensor:
    """The states of several keys on every rank, ``[keys, positions, d]``: one exchange for all of them.

    The rank that keeps a state translates it, so that this work is divided as the states are.
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
    return torch.stack([shared[owner, place] for owner, place in zip(owners, places, strict=True)])  # waits for no GPU


def _block(
    rank: Rank, projector: Projector, logits: torch.Tensor, output: Output, target_ids: torch.Tensor | None, k: int
) -> Block:
    """What this rank's rows say of a block of cells.

    Args:
        logits: ``[keys, positions, rows]``, written over.
        output: the model's own distribution at the positions.
        target_ids: ``[positions]``, where the rows are tokens.
    """
    keys, positions, rows = logits.shape
    head, shape = projector.head, (keys, positions)
    if target_ids is None:
        target = logits.new_full((keys * positions,), torch.inf)
    else:
        target = head.logits_at(rank, logits.view(-1, rows), target_ids.repeat(keys)[:, None])[:, 0]
    values, ids, found = read(logits, target.view(shape), output, min(k, head.rows))
    largest, total = values[..., 0].double(), output.total.double()
    # Σ exp(F − f)(F − z), from what both sums left out of F and z
    difference = output.own.double() - found.crossed.double() + (output.largest.double() - largest) * total
    columns = [largest, found.total, found.weighted, output.largest.expand(shape), total.expand(shape), difference, found.above]
    sums = torch.stack([column.double().reshape(-1) for column in columns], -1)
    candidates = (values.flatten(0, 1).double(), (ids.flatten(0, 1) + head.offset).double())
    return Block(*candidates, sums, target.double())


def _share_block(rank: Rank, projector: Projector, block: Block, k: int) -> list[Block]:
    """Every rank's figures for a block."""
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
    """Empty variables, ``[keys, positions(, k)]``."""
    room = {
        name: np.empty((keys, positions, k) if per_candidate else (keys, positions), dtype)
        for name, (per_candidate, dtype) in VARIABLES.items()
    }
    followed = {"tracked_id": np.int32, **TRACKED} if tracked else {}
    return room | {name: np.empty((keys, positions, tracked), dtype) for name, dtype in followed.items()}
