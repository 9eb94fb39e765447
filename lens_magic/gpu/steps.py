"""Operations of a decode step around its matrix products, one kernel each, on GPUs for which Triton compiles.

The number of kernels bounds the speed of a small model's recorded step (:mod:`..model.fused` says where these are used).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .trial import drawn, trial

KINDS = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of the states that these kernels are for."""


def rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return weight · round(x / rms(x)) over the last dimension, rounding as Llama's RMS norm does.

    Args:
        states: ``[…, width]``.
        weight: ``[width]``.
    """
    from .steps_kernels import rms_norm_of_rows

    width = states.shape[-1]
    states = states.contiguous()
    out = torch.empty_like(states, dtype=torch.promote_types(weight.dtype, states.dtype))
    lanes = power_of_two(width)
    with torch.cuda.device_of(states):
        rms_norm_of_rows[(states.numel() // width,)](
            states, weight, out, width, epsilon, LANES=lanes, num_warps=min(8, max(1, lanes // 512))
        )
    return out


def rotate(
    queries: torch.Tensor, keys: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply rotary embeddings (Su et al. 2021, arXiv:2104.09864) to queries and keys of one position, as Llama does.

    Args:
        queries, keys: ``[batch, heads, 1, head width]``.
        cosines, sines: ``[batch or 1, 1, head width]``.
    """
    from .steps_kernels import rotate_heads

    (batch, query_heads, _, width), key_heads = queries.shape, keys.shape[1]
    queries, keys = queries.contiguous(), keys.contiguous()
    cosines, sines = (angles.expand(batch, 1, width).contiguous() for angles in (cosines, sines))
    rotated = torch.empty_like(queries), torch.empty_like(keys)
    with torch.cuda.device_of(queries):
        rotate_heads[(batch * (query_heads + key_heads),)](
            *(queries, keys, cosines, sines, *rotated, query_heads, key_heads, width // 2),
            LANES=power_of_two(width // 2),
            num_warps=1,
            enable_fp_fusion=False,  # a product is rounded before it is added
        )
    return rotated


def gated(gates: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return SiLU(gates) · values, with SiLU(gates) rounded before the product.

    Args:
        gates, values: of one shape and dtype.
    """
    from .steps_kernels import gate

    gates, values = gates.contiguous(), values.contiguous()
    out = torch.empty_like(gates)
    lanes = 512
    with torch.cuda.device_of(gates):
        gate[(-(-gates.numel() // lanes),)](gates, values, out, gates.numel(), LANES=lanes, num_warps=4)
    return out


def power_of_two(least: int) -> int:
    """Return the smallest power of two that is at least ``least``."""
    return 1 << (least - 1).bit_length()


def _is_right(device: torch.device, dtype: torch.dtype) -> bool:
    widths = 200, 512  # divisible by 16, their halves too, or not
    return dtype in KINDS and all(_alike(device, dtype, width) for width in widths)


def _alike(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    some = drawn(device, dtype)
    states, weight, angles = some(3, 1, width) * 3, some(width), some(2, 1, width)
    queries, keys = some(2, 6, 1, width), some(2, 2, 1, width)
    gates, values = some(2, 1, width), some(2, 1, width)
    pairs = [
        (rms_norm(states, weight, 1e-6), weight * F.rms_norm(states, (width,), None, 1e-6)),
        *zip(
            rotate(queries, keys, angles.cos(), angles.sin()), [_turned(each, angles) for each in (queries, keys)], strict=True
        ),
        (gated(gates, values), F.silu(gates) * values),
    ]
    near = max(2 * torch.finfo(dtype).eps, 1e-5)  # a sum or an exponential may be rounded the other way
    return all(torch.allclose(ours.float(), expected.float(), rtol=near, atol=near) for ours, expected in pairs)


def _turned(states: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, -1)
    return states * angles.cos()[:, None] + torch.cat([-second, first], -1) * angles.sin()[:, None]


trouble = trial(_is_right)
"""Returns why these kernels are not used on a GPU for a dtype; None if they are."""
