"""Attention from a single position, spread over a whole GPU, on GPUs for which Triton compiles.

A decode step has one query per head, and torch's kernels give each key head to one multiprocessor: with eight key heads,
only eight of an H200's 132 would read keys and values. Here the columns are divided too, and the parts combined afterwards
(Dao et al. 2023, "Flash-Decoding"). Queries that share a key head (Ainslie et al. 2023, arXiv:2305.13245) read it once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .steps import power_of_two
from .trial import drawn, trial

WIDEST = {torch.float32: 64, torch.bfloat16: 256, torch.float16: 256}
"""The widest heads for which a program has room for what it reads, by dtype of its inputs."""

_AT_ONCE = 64  # columns a program reads at a time; fewer for wider heads
_PARTS_AT_ONCE = 16
_USUAL_PARTS = 64  # what the kernel is compiled for, so that it need not be recompiled as the columns grow
_PROGRAMS = 256  # how many there should be at least: two for each of an H100's multiprocessors
_LEAST = 16  # fewest rows and lanes of a product on tensor cores


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float, last: torch.Tensor
) -> torch.Tensor:
    """Return softmax(scale · q·k) v over the visible columns, ``[batch, heads, 1, width]``.

    The softmax is in float32; its weights are rounded to the dtype of the values before the sum over them.

    Args:
        queries: ``[batch, heads, 1, width]``.
        keys, values: ``[batch, key heads, columns, width]`` of one dtype; the number of heads is a multiple of key heads.
        mask: bool ``[batch or 1, 1, 1, columns]``, True for visible columns.
        last: int64 ``[1]`` on their device: no column behind this one is visible. They are not read, but for the next few.
    """
    from .attention_kernels import attend_to_part, put_together

    (batch, heads, _, width), (_, key_heads, columns, _) = queries.shape, keys.shape
    group, at_once = heads // key_heads, _at_once(width)
    queries, mask = queries.contiguous(), mask.view(mask.shape[0], columns)
    keys, values = (each if each.stride(-1) == 1 else each.contiguous() for each in (keys, values))
    parts, part = _parts(batch * key_heads, columns, at_once)
    lanes = power_of_two(max(width, _LEAST))
    shape = (batch, key_heads, parts, group)
    sums = torch.empty((*shape, width), dtype=torch.float32, device=queries.device)
    peaks, totals = (torch.empty(shape, dtype=torch.float32, device=queries.device) for _ in range(2))
    out = torch.empty_like(queries)
    with torch.cuda.device_of(queries):
        attend_to_part[(parts, batch * key_heads)](
            *(queries, keys, values, mask, last, sums, peaks, totals, scale, columns, part, key_heads, group, width),
            *(*keys.stride()[:3], *values.stride()[:3], mask.stride(0) if mask.shape[0] > 1 else 0),
            ROWS=power_of_two(max(group, _LEAST)),
            LANES=lanes,
            AT_ONCE=at_once,
            num_warps=4,
            num_stages=2,
        )
        put_together[(batch * heads,)](
            *(sums, peaks, totals, out, parts, group, width),
            PARTS=max(_USUAL_PARTS, power_of_two(parts)),
            LANES=lanes,
            AT_ONCE=_PARTS_AT_ONCE,
            num_warps=4,
        )
    return out


def _at_once(width: int) -> int:
    return _AT_ONCE if width <= 128 else _AT_ONCE // 2


def _parts(pairs: int, columns: int, at_once: int) -> tuple[int, int]:
    """Return the number of parts to divide the columns into, and columns per part, for ``pairs`` of sequence and key head."""
    blocks = -(-columns // at_once)
    part = max(1, blocks * pairs // _PROGRAMS)  # rounded down: rather too many programs than too few
    return -(-blocks // part), part * at_once


def _is_right(device: torch.device, dtype: torch.dtype) -> bool:
    shapes = ((2, 6, 2, 300, 40), (1, 8, 2, 256, 64), (1, 8, 2, 256, 128), (3, 2, 2, 100, 256))  # divisible by 16, or not
    return dtype in WIDEST and all(_alike(device, dtype, *shape) for shape in shapes if shape[-1] <= WIDEST[dtype])


def _alike(device: torch.device, dtype: torch.dtype, batch: int, heads: int, key_heads: int, columns: int, width: int) -> bool:
    some = drawn(device, dtype)
    queries, room = some(batch, heads, 1, width), (batch, key_heads, columns + 20, width)
    keys, values = (some(*room)[:, :, :columns] for _ in range(2))
    mask = torch.ones((batch, 1, 1, columns), dtype=torch.bool, device=device)
    last = torch.tensor([columns * 2 // 3], device=device)
    mask[0, ..., :65] = False  # more than is read at a time
    mask[..., columns * 2 // 3 + 1 :] = False
    q, k, v = (each.double() for each in (queries, keys, values))  # which TF32 settings do not affect
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    near = max(4 * torch.finfo(dtype).eps, 1e-5)
    mask[..., -1] = True  # far behind the last
    return torch.allclose(attend(queries, keys, values, mask, 0.3, last).double(), expected, rtol=near, atol=near)


trouble = trial(_is_right)
"""Returns why these kernels are not used on a GPU for a dtype; None if they are."""
