"""Whether kernels can be had on a GPU: they are tried before they are used."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch

IsRight = Callable[[torch.device, torch.dtype], bool]
Trouble = Callable[[torch.device, torch.dtype], "str | None"]


def drawn(device: torch.device, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """A function that draws tensors of given shapes for a trial, always the same, whatever the user has made the default."""
    made = torch.Generator("cpu").manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=made, device="cpu", dtype=torch.float32).to(device, dtype)


def trial(is_right: IsRight) -> Trouble:
    """What tells why kernels are not to be used on a GPU for a type (None where they are), and tries them once for each.

    Args:
        is_right: runs them on small tensors there and compares what they give. Where a number is divisible by 16 Triton
            compiles another kernel, so that both are to be tried.
    """

    @functools.cache
    def trouble(device: torch.device, dtype: torch.dtype) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        try:
            right = is_right(device, dtype)
        # No compiler on this machine, a GPU that Triton does not know, a Triton that has changed: all the same here.
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return None if right else "what they compute is wrong"

    return trouble
