"""The kernels of :mod:`.attention`, in Triton (Tillet et al. 2019); imported only where Triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # which takes no annotations other than its own
def attend_to_part(
    queries,
    keys,
    values,
    mask,
    last,
    sums,
    peaks,
    totals,
    scale,
    columns,
    part,
    key_heads,
    group,
    width,
    key_of_sequence,
    key_of_head,
    key_of_column,
    value_of_sequence,
    value_of_head,
    value_of_column,
    mask_of_sequence,
    ROWS: tl.constexpr,  # noqa: N803 - constants are written so
    LANES: tl.constexpr,  # noqa: N803
    AT_ONCE: tl.constexpr,  # noqa: N803
):
    """Attend to one part of the columns, for the queries of one sequence that share a key head: Σ p v, unnormalised.

    The peak in p = exp(score − peak) is updated while columns are read, so that nothing overflows (Milakov and Gimelshein
    2018, arXiv:1805.02867). In a part without a visible column it is −∞, and the sums are 0.

    Args:
        queries: ``[batch, key_heads · group, width]``, contiguous.
        keys, values: ``[batch, key_heads, columns, width]``, read by their strides in elements; the last is 1.
        mask: ``[batch, columns]`` or one row for all: which columns are visible.
        last: one int64, the last column that any query sees; nothing is read behind the AT_ONCE columns that it is among.
        sums, peaks, totals: ``[batch, key_heads, parts, group, width]`` in float32, the latter two without the width.
        part: columns of a part, a multiple of AT_ONCE.
        ROWS, LANES: powers of two, at least 16; at least group and width.
    """
    number, pair = tl.program_id(0), tl.program_id(1)
    sequence, head = pair // key_heads, pair % key_heads
    rows, lanes, step = tl.arange(0, ROWS), tl.arange(0, LANES), tl.arange(0, AT_ONCE)
    inside = (rows < group)[:, None] & (lanes < width)[None, :]
    within = rows[:, None] * width + lanes[None, :]
    q = tl.load(queries + pair.to(tl.int64) * group * width + within, mask=inside, other=0.0)
    keys += sequence.to(tl.int64) * key_of_sequence + head.to(tl.int64) * key_of_head
    values += sequence.to(tl.int64) * value_of_sequence + head.to(tl.int64) * value_of_head
    mask += sequence.to(tl.int64) * mask_of_sequence
    end = tl.minimum((number + 1) * part, columns)
    stop = tl.minimum(end, tl.load(last).to(tl.int32) + 1)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, LANES], tl.float32)
    for first in range(number * part, stop, AT_ONCE):
        at = first + step
        there = (at < end)[:, None] & (lanes < width)[None, :]
        k = tl.load(keys + at.to(tl.int64)[:, None] * key_of_column + lanes[None, :], mask=there, other=0.0)
        v = tl.load(values + at.to(tl.int64)[:, None] * value_of_column + lanes[None, :], mask=there, other=0.0)
        seen = tl.load(mask + at, mask=at < end, other=0) != 0
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # −∞ − (−∞) is NaN
        before = tl.exp(peak - finite)
        p = tl.exp(scores - finite[:, None])
        total = total * before + tl.sum(p, 1)
        summed = summed * before[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        peak = higher
    place = (pair * tl.num_programs(0) + number).to(tl.int64) * group
    tl.store(sums + place * width + within, summed, mask=inside)
    tl.store(peaks + place + rows, peak, mask=rows < group)
    tl.store(totals + place + rows, total, mask=rows < group)


@triton.jit(do_not_specialize=["parts"])  # they grow with the columns
def put_together(
    sums,
    peaks,
    totals,
    out,
    parts,
    group,
    width,
    PARTS: tl.constexpr,  # noqa: N803
    LANES: tl.constexpr,  # noqa: N803
    AT_ONCE: tl.constexpr,  # noqa: N803
):
    """Combine the parts of one query. (At least one has a visible column: a token sees itself.)

    Args:
        sums, peaks, totals: as :func:`attend_to_part` left them.
        out: ``[batch, heads, width]``, contiguous.
        PARTS, LANES, AT_ONCE: powers of two: at least parts, at least width, and the number of parts to read at a time.
    """
    query = tl.program_id(0)
    first = (query // group * parts).to(tl.int64) * group + query % group
    numbers, lanes = tl.arange(0, PARTS), tl.arange(0, LANES)
    highest = tl.max(tl.load(peaks + first + numbers * group, mask=numbers < parts, other=float("-inf")), 0)
    total = tl.zeros([AT_ONCE], tl.float32)
    summed = tl.zeros([AT_ONCE, LANES], tl.float32)
    for begin in range(0, parts, AT_ONCE):
        at = begin + tl.arange(0, AT_ONCE)
        there, places = at < parts, first + at * group
        weights = tl.exp(tl.load(peaks + places, mask=there, other=float("-inf")) - highest)
        total += weights * tl.load(totals + places, mask=there, other=0.0)
        inside = there[:, None] & (lanes < width)[None, :]
        summed += weights[:, None] * tl.load(sums + places[:, None] * width + lanes[None, :], mask=inside, other=0.0)
    attended = tl.sum(summed, 0) / tl.sum(total, 0)
    tl.store(out + query.to(tl.int64) * width + lanes, attended.to(out.dtype.element_ty), mask=lanes < width)
