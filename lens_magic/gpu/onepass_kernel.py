"""The kernel of :mod:`.onepass`, in Triton (Tillet et al. 2019); imported only where Triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl


# Triton takes no annotations other than its own. Other numbers of positions or cells do not need another kernel.
@triton.jit(do_not_specialize=["positions", "groups"], do_not_specialize_on_alignment=["total", "weighted", "crossed", "above"])
def sums_of_cells(
    logits,
    target,
    weights,
    total,
    weighted,
    crossed,
    above,
    maxima,
    rows,
    positions,
    groups,
    ROWS_AT_ONCE: tl.constexpr,  # noqa: N803 - constants are written so
    GROUP: tl.constexpr,  # noqa: N803
):
    """Compute one cell's figures in one pass over its logits, rescaling every sum whenever a new largest logit comes up.

    Args:
        logits: float32 ``[cells, rows]``, contiguous; cells are ``keys · positions``.
        target: ``[cells]``.
        weights: the output's, ``[positions, rows]``, contiguous.
        total, weighted, crossed, above: ``[cells]``, as :class:`..lens.figures.Figures` has them; written.
        maxima: ``[cells, groups]``, the largest of every ``GROUP`` logits, +∞ if one is NaN; written.
    """
    cell = tl.program_id(0).to(tl.int64)
    row = logits + cell * rows
    output = weights + (cell % positions) * rows
    aim = tl.load(target + cell)
    lanes = tl.arange(0, ROWS_AT_ONCE)
    group_lanes = tl.arange(0, ROWS_AT_ONCE // GROUP)

    m = float("-inf")  # the largest so far, which all sums are relative to
    exp_sum = tl.zeros([ROWS_AT_ONCE], tl.float32)  # Σ exp(z − m)
    exp_z_sum = tl.zeros([ROWS_AT_ONCE], tl.float32)  # Σ exp(z − m)(z − m)
    weight_sum = tl.zeros([ROWS_AT_ONCE], tl.float32)  # Σ w
    weight_z_sum = tl.zeros([ROWS_AT_ONCE], tl.float32)  # Σ w (z − m)
    higher = tl.zeros([ROWS_AT_ONCE], tl.int32)
    for begin in range(0, rows, ROWS_AT_ONCE):
        there = begin + lanes < rows
        z = tl.load(row + begin + lanes, mask=there, other=float("-inf"))
        w = tl.load(output + begin + lanes, mask=there, other=0.0)
        known = tl.where(z == z, z, float("inf"))  # maxima ignore NaN
        of_groups = tl.max(tl.reshape(known, [ROWS_AT_ONCE // GROUP, GROUP]), 1)
        group = begin // GROUP + group_lanes
        tl.store(maxima + cell * groups + group, of_groups, mask=group < groups)

        largest = tl.maximum(m, tl.maximum(tl.max(of_groups, 0), -3.0e38))  # −∞ − (−∞) would be NaN
        step = tl.where(begin == 0, 0.0, m - largest)
        shrunk = tl.exp(step)
        x = tl.where(there, z - largest, 0.0)
        e = tl.where(there, tl.exp(x), 0.0)
        exp_z_sum = shrunk * (exp_z_sum + step * exp_sum) + e * x
        exp_sum = shrunk * exp_sum + e
        weight_z_sum += step * weight_sum + w * x
        weight_sum += w
        higher += (z > aim).to(tl.int32)
        m = largest
    tl.store(total + cell, tl.sum(exp_sum, 0))
    tl.store(weighted + cell, tl.sum(exp_z_sum, 0))
    tl.store(crossed + cell, tl.sum(weight_z_sum, 0))
    tl.store(above + cell, tl.sum(higher, 0).to(tl.float32))
