"""Whether kernels work on a GPU: they are tried before they are used."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch

IsRight = Callable[[torch.device, torch.dtype], bool]
Trouble = Callable[[torch.device, torch.dtype], "str | None"]


def drawn(device: torch.device, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """Return a function that draws a trial's tensors of given shapes: always the same, whatever the user's torch defaults."""
    made = torch.Generator("cpu").manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=made, device="cpu", dtype=torch.float32).to(device, dtype)


def trial(is_right: IsRight) -> Trouble:
    """Return a function that tries kernels once for each GPU and dtype, and says why they are not to be used, or None.

    Args:
        is_right: runs them on small tensors there and checks the results. Triton compiles different kernels for numbers that
            are divisible by 16 and for others, so it has to try both.
    """

    @functools.cache
    def trouble(device: torch.device, dtype: torch.dtype) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        try:
            right = is_right(device, dtype)
        # No compiler on this machine, a GPU unknown to Triton, or a changed Triton: all are treated the same.
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return None if right else "what they compute is wrong"

    return trouble
