"""A block's figures in one pass over its logits, on GPUs for which Triton compiles.

With torch's own operations they take seventeen passes over the logits in memory (:mod:`..lens.figures`, which is used where
this kernel is not available).
"""

from __future__ import annotations

import torch

from .trial import drawn, trial

GROUP = 128
"""Number of logits in a group, whose maximum decides whether any of them can be among the largest."""

# 2,048 logits at a time in four warps take 162 registers per thread on compute capability 9.0 and 167 on 8.0, so that three
# such blocks fit a multiprocessor, with 48 KB on the way from memory.
_ROWS_AT_ONCE, _WARPS = 2048, 4

# Bytes that finding the largest may take at a time, and that it takes for each logit it looks at.
_ROOM, _BYTES_FOR_ONE = 64 << 20, 36


def sums(
    logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Compute what :class:`..lens.figures.Figures` holds, in its order, and every group's largest logit.

    Args:
        logits: ``[keys, positions, rows]`` float32, contiguous.
        target: ``[keys, positions]``.
        weights: exp(F − f) of the model's own output, ``[positions, rows]``.

    Returns:
        Four of ``[keys, positions]``; ``[keys · positions, groups]``, +∞ for a group with a NaN.
    """
    from .onepass_kernel import sums_of_cells

    keys, positions, rows = logits.shape
    cells, groups = keys * positions, -(-rows // GROUP)
    found = logits.new_empty((4, keys, positions))
    maxima = logits.new_empty((cells, groups))
    with torch.cuda.device_of(logits):  # which need not be on the current device
        sums_of_cells[(cells,)](
            logits.contiguous(),
            target.contiguous(),
            weights.contiguous(),
            *found.unbind(0),
            maxima,
            rows,
            positions,
            groups,
            ROWS_AT_ONCE=_ROWS_AT_ONCE,
            GROUP=GROUP,
            num_warps=_WARPS,
        )
    total, weighted, crossed, above = found.unbind(0)
    return (total, weighted, crossed, above), maxima


def top(logits: torch.Tensor, maxima: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like :func:`..lens.figures.top`, but without waiting for the GPU to tell whether there are ties.

    The k largest are in the k groups with the largest maxima; of equal maxima the first groups are taken.

    Args:
        logits: ``[cells, rows]``.
        maxima: maxima of their groups, from :func:`sums`.
    """
    few = maxima.shape[1] > 4 * k
    cells = max(1, _ROOM // (_BYTES_FOR_ONE * (k * GROUP if few else logits.shape[1])))
    parts = zip(logits.split(cells), maxima.split(cells), strict=True)
    found = [_top_by_groups(*part, k) if few else _first(part[0], _places(part[0]), k) for part in parts]
    ids = found[0] if len(found) == 1 else torch.cat(found)
    return logits.gather(1, ids), ids


def _top_by_groups(logits: torch.Tensor, maxima: torch.Tensor, k: int) -> torch.Tensor:
    rows, first = logits.shape[1], _first(maxima, _places(maxima), k)  # [cells, k]
    places = (first[:, :, None] * GROUP + torch.arange(GROUP, device=logits.device)).flatten(1)
    among = logits.gather(1, places.clamp(max=rows - 1)).masked_fill_(places >= rows, -torch.inf)
    return _first(among, places, k)


def _places(values: torch.Tensor) -> torch.Tensor:
    return torch.arange(values.shape[1], device=values.device)


def _first(values: torch.Tensor, places: torch.Tensor, k: int) -> torch.Tensor:
    """Return the places of the k largest, in order, ties by lower place; NaN counts as larger than everything else.

    Value and place are combined into one integer, so that no two are equal.
    """
    bits = (values + 0.0).view(torch.int32)  # −0 becomes 0
    bits.masked_fill_(values.isnan(), 0x7FFFFFFF)
    bits ^= (bits >> 31) & 0x7FFFFFFF  # of two negative numbers the larger has the smaller bits
    keys = bits.long()
    keys <<= 32
    keys -= places
    return -keys.topk(k).values & 0xFFFFFFFF


def _is_right(device: torch.device, dtype: torch.dtype) -> bool:
    sizes = 2 * _ROWS_AT_ONCE + 77, 2 * _ROWS_AT_ONCE + 80  # divisible by 16, or not
    return all(_alike(device, dtype, rows) for rows in sizes)


def _alike(device: torch.device, dtype: torch.dtype, rows: int) -> bool:
    some = drawn(device, dtype)
    logits, weights = some(3, 2, rows) * 9, some(2, rows).abs()
    target = logits[..., 7].contiguous()
    found, maxima = sums(logits, target, weights)
    largest = logits.amax(-1, keepdim=True)
    below = (logits - largest).double()
    expected = [below.exp().sum(-1), (below.exp() * below).sum(-1), (weights.double() * below).sum(-1)]
    close = all(torch.allclose(one.double(), other, rtol=1e-4, atol=0) for one, other in zip(found, expected, strict=False))
    counted = torch.equal(found[3].long(), (logits > target[..., None]).sum(-1))
    return close and counted and torch.equal(maxima.amax(-1), largest.flatten())


trouble = trial(_is_right)
"""Returns why the kernel is not used on a GPU for logits of a dtype (theirs is float32); None if it is."""
