"""Products with 16-bit weights on a CPU.

Without instructions for 16-bit numbers, torch multiplies them one by one. A product of many rows is four to seven times as
fast in float32, weights converted a block at a time. Both sum in float32 and round once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from .standing_in import Forward, standing_in

CONVERTED_ELEMENTS = 1 << 22  # weights converted to float32 at a time on a CPU: 16 MB
ROUNDED_ELEMENTS = 1 << 20  # the same in the model's own layers: 4 MB, which stay allocated
_FEW_CELLS, _CONVERTED_FOR_FEW = 64, 1 << 19  # with few cells, reading them back counts; 2 MB stay in the cache
_MANY, _AT_ONCE = 16, 512  # states from which converting weights is worth it, and most converted themselves at a time


def float32_product(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute ``states @ weight.T`` as if both were float32, without a float32 copy of the whole weight.

    Args:
        states: ``[cells, d]``.
        weight: ``[rows, d]``.

    Returns:
        ``[cells, rows]``, float32.
    """
    if weight.dtype == torch.float32:
        return F.linear(states.float(), weight)
    if weight.is_cuda and states.dtype == weight.dtype and weight.itemsize == 2:
        # The products of 16-bit numbers are exact in float32; only the sum rounds, as it would in float32.
        return torch.mm(states, weight.t(), out_dtype=torch.float32)
    states = states.float()
    out = states.new_empty((states.shape[0], weight.shape[0]))
    elements = CONVERTED_ELEMENTS if states.shape[0] > _FEW_CELLS else _CONVERTED_FOR_FEW
    step = max(1, elements // weight.shape[1])
    converted = states.new_empty((min(step, weight.shape[0]), weight.shape[1]))
    for first in range(0, weight.shape[0], step):
        rows = weight[first : first + step]
        torch.mm(states, converted[: len(rows)].copy_(rows).t(), out=out[:, first : first + step])
    return out


def linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute what ``F.linear`` does, in the weights' dtype, in the fastest way there is. Not for training.

    Args:
        states: ``[…, d]``.
        weight: ``[rows, d]``.
        bias: ``[rows]``.
    """
    rows, width = weight.shape
    few = states.numel() < max(1, _MANY * width)
    if few or states.dtype != weight.dtype or not is_slow(weight.device, weight.dtype):
        return F.linear(states, weight, bias)
    flat, step = states.reshape(-1, width), max(1, ROUNDED_ELEMENTS // width)
    out = weight.new_empty((len(flat), rows))
    for some, into in zip(flat.split(_AT_ONCE), out.split(_AT_ONCE), strict=True):
        wide = some.float()
        for first in range(0, rows, step):
            part = weight[first : first + step]
            product = torch.mm(wide, _room()[: part.numel()].view(part.shape).copy_(part).t())
            if bias is not None:
                product += bias[first : first + step]
            into[:, first : first + step] = product
    return out.view(*states.shape[:-1], rows)


def linear_bytes(states: int, narrowest: int, widest: int) -> int:
    """Return the bytes that :func:`linear` needs at a time where it converts, for layers between two widths."""
    block = min(ROUNDED_ELEMENTS // narrowest, widest)  # outputs
    return 4 * (block * narrowest + min(states, _AT_ONCE) * (widest + block))


@functools.cache
def is_slow(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device has no instructions for products of a 16-bit dtype."""
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return False
    kind = "bf16" if dtype == torch.bfloat16 else "fp16"
    known = getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", None)
    return known is not None and not known()


@functools.cache
def _room() -> torch.Tensor:
    """Room for converted weights: one for all layers, as a recorded step would keep one for each."""
    with torch.inference_mode(False):
        return torch.empty(ROUNDED_ELEMENTS)


@contextlib.contextmanager
def fast(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Have a model's linear layers multiply by :func:`linear` within the ``with`` block, where that is a gain."""
    if not is_slow(device, dtype):
        yield
        return
    with standing_in({each: _forward_of(each) for each in model.modules() if _is_plain(each)}):
        yield


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is torch's linear layer with weights that are numbers, not a quantised tensor that looks like them."""
    return type(module) is nn.Linear and "forward" not in vars(module) and type(module.weight) is nn.Parameter


def _forward_of(layer: nn.Linear) -> Forward:
    def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as torch names it
        return linear(input, layer.weight, layer.bias)

    return forward
