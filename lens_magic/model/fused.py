"""RMS norms in two kernels instead of eight: on a GPU a decode step of a small model is bound by how many kernels it has.

Of a Qwen 3 layer's sixty, norms are thirty-two. What is computed, and where it is rounded, stays the module's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Those of transformers that give weight · round(x / rms(x)): rounded to the model's type before the weight. (OLMo 2 and Gemma
# round after it, and are left as they are.)
_FAMILIES = ("llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe")


@contextlib.contextmanager
def fused_norms(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a model's RMS norms run in few kernels for a while, where that is a gain: on a GPU."""
    found = [module for module in model.modules() if fusible(module)] if device.type == "cuda" else []
    for module in found:
        module.forward = fused(module)
    try:
        yield
    finally:
        for module in found:
            del module.forward


def fusible(module: nn.Module) -> bool:
    """Whether it is such a norm, as its family has it: its forward neither stood in for nor anyone's own."""
    package, _, name = type(module).__module__.rpartition(".")
    family = name.removeprefix("modeling_")
    ours = package == f"transformers.models.{family}" and family in _FAMILIES and type(module).__name__.endswith("RMSNorm")
    return ours and "forward" not in vars(module)


def fused(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward of such a norm."""
    width, epsilon = tuple(norm.weight.shape), norm.variance_epsilon

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        rounded = F.rms_norm(hidden_states, width, None, epsilon)
        scaled: torch.Tensor = norm.weight * rounded
        return scaled

    return forward
