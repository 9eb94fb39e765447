"""Figures of a block of cells, from one rank's rows of the vocabulary.

These passes are bound by memory, and take noticeable time beside a matrix product of modest width. On a GPU a kernel merges
them into one (:mod:`..gpu.onepass`). Elsewhere they go over tiles small enough to stay in the caches from the first pass to
the last, and overwrite the logits, which nothing needs afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..gpu import onepass

# Bytes of a tile's logits. On a CPU, per thread: as much as fits its second-level cache beside the scratch and the output's
# weights. On a GPU: as much as fits its cache, while every kernel still takes longer than its launch.
_TILE_BYTES = {"cpu": 640 << 10, "cuda": 64 << 20}
_FEWEST_CELLS = 64  # fewer would be more calls than work


@dataclass(frozen=True)
class Output:
    """The model's own distribution at some positions, over this rank's rows.

    Attributes:
        largest: f, the largest logit F of these rows, ``[positions]``.
        weights: exp(F − f), ``[positions, rows]``.
        total: Σ exp(F − f), ``[positions]``.
        own: Σ exp(F − f)(F − f), ``[positions]``.
    """

    largest: torch.Tensor
    weights: torch.Tensor
    total: torch.Tensor
    own: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor) -> Output:
        """Make it from the model's own logits F, ``[positions, rows]``, which are overwritten."""
        largest = logits.amax(-1)
        shifted = logits.sub_(largest[:, None])
        weights = shifted.exp()
        return cls(largest, weights, weights.sum(-1), shifted.mul_(weights).sum(-1))


@dataclass(frozen=True)
class Figures:
    """Sums over this rank's rows of each cell's logits z, all ``[keys, positions]`` and float32, with m the largest of them.

    Attributes:
        total: Σ exp(z − m).
        weighted: Σ exp(z − m)(z − m).
        crossed: Σ exp(F − f)(z − m), F and f as in :class:`Output`.
        above: how many logits exceed the target's (float32 counts exactly up to 2²⁴, more than any vocabulary has).
    """

    total: torch.Tensor
    weighted: torch.Tensor
    crossed: torch.Tensor
    above: torch.Tensor


def read(logits: torch.Tensor, target: torch.Tensor, output: Output, k: int) -> tuple[torch.Tensor, torch.Tensor, Figures]:
    """Find the candidates and compute the sums of every cell.

    Args:
        logits: ``[keys, positions, rows]``, overwritten.
        target: the target's logit, ``[keys, positions]``, whichever rank has its row.

    Returns:
        The k largest logits and their rows, ``[keys, positions, k]``, and the sums.
    """
    if logits.is_cuda and onepass.trouble(logits.device, logits.dtype) is None:
        found, maxima = onepass.sums(logits, target, output.weights)
        best, places = onepass.top(logits.flatten(0, 1), maxima, k)
        shape = (*logits.shape[:2], k)
        return best.view(shape), places.view(shape), Figures(*found)
    keys, positions, rows = logits.shape
    values = logits.new_empty((keys, positions, k))
    ids = torch.empty((keys, positions, k), dtype=torch.long, device=logits.device)
    figures = Figures(*(logits.new_empty((keys, positions)) for _ in range(4)))
    most = cells_in_tile(logits.device.type, rows, keys * positions)
    scratch = logits.new_empty((most, rows))
    for tile in tiles(keys, positions, most):
        cells = logits[tile].flatten(0, 1)  # [cells, rows], a view
        best, places = top(cells, k)
        shape = values[tile].shape
        values[tile], ids[tile] = best.view(shape), places.view(shape)
        measure(logits[tile], values[tile][..., 0], target[tile], output.weights[tile[1]], scratch[: len(cells)], tile, figures)
    return values, ids, figures


def cells_in_tile(device: str, rows: int, cells: int) -> int:
    """Return how many cells with ``rows`` rows make a tile of a block of ``cells``; device is "cpu" or "cuda".

    At most a quarter of the block, but at least 64 of its cells if they fit: the scratch is as large as a tile.
    """
    room = _TILE_BYTES[device] * (torch.get_num_threads() if device == "cpu" else 1)
    return max(1, min(room // (4 * rows), max(_FEWEST_CELLS, cells // 4), cells))


def measure(
    logits: torch.Tensor,
    largest: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor,
    scratch: torch.Tensor,
    tile: tuple[slice, slice],
    into: Figures,
) -> None:
    """Compute the sums of one tile. Each pass reads what the last one left in the cache; none allocates another tile.

    Args:
        logits: ``[keys, positions, rows]``, overwritten.
        largest, target: ``[keys, positions]``.
        weights: the output's, ``[positions, rows]``.
        scratch: ``[keys · positions, rows]``.
        tile: where the sums belong in ``into``.
    """
    shape = largest.shape
    cells = logits.flatten(0, 1)
    into.above[tile] = torch.gt(cells, target.reshape(-1, 1), out=scratch).sum(-1).view(shape)
    cells.sub_(largest.reshape(-1, 1))
    into.crossed[tile] = _crossed(logits, weights, scratch)
    torch.exp(cells, out=scratch)
    into.total[tile] = scratch.sum(-1).view(shape)
    into.weighted[tile] = scratch.mul_(cells).sum(-1).view(shape)


def _crossed(logits: torch.Tensor, weights: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """Return Σ weights · logits over the rows, ``[keys, positions]``. A batched product sums in sequence and loses digits."""
    if logits.shape[1] == 1:
        return torch.mv(logits[:, 0], weights[0])[:, None]
    return torch.mul(logits, weights, out=scratch.view(logits.shape)).sum(-1)


def tiles(keys: int, positions: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut ``[keys, positions]`` into tiles of at most ``most`` cells whose cells are evenly spaced in memory.

    That is, some keys at all positions, or some keys at one.
    """
    wide = positions if positions <= most else 1
    for position in range(0, positions, wide):
        for key in range(0, keys, most // wide):
            yield slice(key, key + most // wide), slice(position, position + wide)


def top(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest of each row and their indices, in order, ties by lower index (which ``topk`` does not promise).

    Args:
        logits: ``[cells, rows]``.
    """
    more = min(k + 1, logits.shape[1])
    values, ids = _largest(logits, more)
    tied = (values[:, 1:] == values[:, :-1]).any(-1)
    if bool(tied.any()):  # rare: a stable sort of those rows only
        again = logits[tied].sort(dim=-1, descending=True, stable=True)
        values[tied], ids[tied] = again.values[:, :more], again.indices[:, :more]
    return values[:, :k], ids[:, :k]


def group_maxima(logits: torch.Tensor) -> torch.Tensor:
    """Return each group's largest logit, ``[cells, rows]`` → ``[cells, groups]``; a row's last group may be shorter."""
    groups, rest = divmod(logits.shape[1], onepass.GROUP)
    maxima = logits[:, : groups * onepass.GROUP].unflatten(-1, (groups, onepass.GROUP)).amax(-1)
    return torch.cat([maxima, logits[:, -rest:].amax(-1, keepdim=True)], -1) if rest else maxima


def _largest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like ``topk``, but in little more than one pass: the k largest are in the k groups whose maxima are largest."""
    rows = logits.shape[1]
    if rows // onepass.GROUP < 4 * k:
        return logits.topk(k)
    first = group_maxima(logits).topk(k).indices * onepass.GROUP  # [cells, k]
    places = (first[:, :, None] + torch.arange(onepass.GROUP, device=logits.device)).flatten(1)
    among = logits.gather(1, places.clamp(max=rows - 1))
    values, chosen = among.masked_fill_(places >= rows, -torch.inf).topk(k)
    return values, places.gather(1, chosen)
