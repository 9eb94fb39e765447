"""Stand-ins for kernels that Triton compiles for a GPU; the kernels themselves are tested in its interpreter."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from lens_magic.gpu import attention, onepass, steps
from lens_magic.lens import figures

from . import card, graphs

_WRITES_NOTHING = SimpleNamespace(is_mutable=False, arguments=[])


def stand_ins() -> list[tuple[Any, str, Any]]:
    """(where, name, what is to be there)."""
    nothing = [(module, "trouble", lambda *_: None) for module in (onepass, steps, attention)]
    functions = [(onepass, sums), (steps, rms_norm), (steps, rotate), (steps, gated), (attention, attend)]
    return [*nothing, *((module, function.__name__, _one(function)) for module, function in functions)]


def _one(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors as one operation of the pretended GPU."""

    def run(*given: Any) -> Any:
        held = [one.held if isinstance(one, card.OnCard) else one for one in given]
        assert all(isinstance(one, card.OnCard) for one in given if isinstance(one, torch.Tensor)), "a kernel's are on the GPU"
        return card.placed(graphs.run(function, _WRITES_NOTHING, held, {}))

    return run


def sums(logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """See :func:`lens_magic.gpu.onepass.sums`."""
    below = logits - logits.amax(-1, keepdim=True)
    found = below.exp().sum(-1), (below.exp() * below).sum(-1), (weights * below).sum(-1), (logits > target[..., None]).sum(-1)
    return tuple(one.float() for one in found), figures.group_maxima(logits.flatten(0, 1))


def rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """See :func:`lens_magic.gpu.steps.rms_norm`."""
    wide = states.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(states.dtype)


def rotate(
    queries: torch.Tensor, keys: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`lens_magic.gpu.steps.rotate`."""

    def turned(states: torch.Tensor) -> torch.Tensor:
        first, second = states.chunk(2, -1)
        return states * cosines[:, None] + torch.cat([-second, first], -1) * sines[:, None]

    return turned(queries), turned(keys)


def gated(gates: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """See :func:`lens_magic.gpu.steps.gated`."""
    return F.silu(gates) * values


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float, last: torch.Tensor
) -> torch.Tensor:
    """See :func:`lens_magic.gpu.attention.attend`."""
    (batch, _, _, width), key_heads = queries.shape, keys.shape[1]
    mask = mask & (torch.arange(mask.shape[-1], device=mask.device) <= last)
    packed = queries.reshape(batch, key_heads, -1, width)  # as transformers does it: the same sums, to the bit
    return F.scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=scale).reshape(queries.shape)
