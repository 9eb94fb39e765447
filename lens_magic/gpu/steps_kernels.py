"""The kernels of :mod:`.steps`, in Triton (Tillet et al. 2019); imported only where Triton is installed.

They round where the operations they replace would have rounded, to the dtype of their inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # which takes no annotations other than its own
def rms_norm_of_rows(states, weight, out, width, epsilon, LANES: tl.constexpr):  # noqa: N803 - constants are written so
    """Normalise one row: weight · round(x / rms(x)).

    Args:
        states, out: ``[rows, width]``, contiguous.
        LANES: a power of two, at least the width.
    """
    row = tl.program_id(0).to(tl.int64) * width
    lanes = tl.arange(0, LANES)
    there = lanes < width
    x = tl.load(states + row + lanes, mask=there, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + epsilon)
    normalised = (x * scale).to(states.dtype.element_ty).to(tl.float32)
    weights = tl.load(weight + lanes, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row + lanes, (weights * normalised).to(out.dtype.element_ty), mask=there)


@triton.jit
def rotate_heads(
    queries,
    keys,
    cosines,
    sines,
    rotated_queries,
    rotated_keys,
    query_heads,
    key_heads,
    half,
    LANES: tl.constexpr,  # noqa: N803
):
    """Rotate one head of one sequence, a query's or a key's: x cos + (−x₂, x₁) sin, with x₁ and x₂ the halves of x.

    Args:
        queries, keys: ``[batch, heads, 2 · half]``, contiguous, as are the results.
        cosines, sines: ``[batch, 2 · half]``.
        LANES: a power of two, at least half.
    """
    program = tl.program_id(0)
    heads = query_heads + key_heads
    sequence, head = program // heads, program % heads
    lanes = tl.arange(0, LANES)
    there = lanes < half
    angles = sequence * 2 * half + lanes
    if head < query_heads:
        place = (sequence * query_heads + head).to(tl.int64) * 2 * half + lanes
        _rotate(queries + place, cosines + angles, sines + angles, rotated_queries + place, half, there)
    else:
        place = (sequence * key_heads + head - query_heads).to(tl.int64) * 2 * half + lanes
        _rotate(keys + place, cosines + angles, sines + angles, rotated_keys + place, half, there)


@triton.jit
def _rotate(states, cosines, sines, out, half, there):
    rounded = states.dtype.element_ty
    first = tl.load(states, mask=there, other=0.0).to(tl.float32)
    second = tl.load(states + half, mask=there, other=0.0).to(tl.float32)
    first_cosine = tl.load(cosines, mask=there, other=0.0).to(tl.float32)
    second_cosine = tl.load(cosines + half, mask=there, other=0.0).to(tl.float32)
    first_sine = tl.load(sines, mask=there, other=0.0).to(tl.float32)
    second_sine = tl.load(sines + half, mask=there, other=0.0).to(tl.float32)
    kept, turned = (first * first_cosine).to(rounded).to(tl.float32), (-second * first_sine).to(rounded).to(tl.float32)
    tl.store(out, (kept + turned).to(rounded), mask=there)
    kept, turned = (second * second_cosine).to(rounded).to(tl.float32), (first * second_sine).to(rounded).to(tl.float32)
    tl.store(out + half, (kept + turned).to(rounded), mask=there)


@triton.jit
def gate(gates, values, out, count, LANES: tl.constexpr):  # noqa: N803
    """Compute SiLU(gate) · value for each of ``count`` gates and values.

    Args:
        gates, values, out: ``[count]``, contiguous.
    """
    lanes = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = lanes < count
    x = tl.load(gates + lanes, mask=there, other=0.0).to(tl.float32)
    opened = (x / (1.0 + tl.exp(-x))).to(gates.dtype.element_ty).to(tl.float32)
    value = tl.load(values + lanes, mask=there, other=0.0).to(tl.float32)
    tl.store(out + lanes, (opened * value).to(out.dtype.element_ty), mask=there)
