"""The final norm taken apart: what it centres, divides by, multiplies with and adds.

The model's own module does all of it at once. Direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits") needs the division by a scale that comes from another state, and training translators needs
a norm that computes in float32 and can be differentiated whatever the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import LensError


@dataclass(frozen=True)
class FinalNorm:
    """A final norm in float32: ``gain · (h − mean) / scale + bias``, the mean of a LayerNorm only.

    Attributes:
        gain: ``[d]``. bias: ``[d]`` or None.
        centred: whether the mean over the width is taken off (LayerNorm) or not (RMSNorm).
        eps: added to the mean square under the root.
    """

    gain: torch.Tensor
    bias: torch.Tensor | None
    centred: bool
    eps: float

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """The norm itself: ``[…, d]`` → ``[…, d]``, float32."""
        return self.add_bias(self.divided(states, self.scale(states)))

    def scale(self, states: torch.Tensor) -> torch.Tensor:
        """What the norm of these states divides by: ``[…, d]`` → ``[…, 1]``."""
        return (self._centre(states).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def divided(self, states: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Centre, divide by a given scale and multiply with the gain: linear in the states."""
        return self._centre(states) / scale * self.gain

    def add_bias(self, states: torch.Tensor) -> torch.Tensor:
        """Add what the norm adds."""
        return states if self.bias is None else states + self.bias

    def _centre(self, states: torch.Tensor) -> torch.Tensor:
        states = states.float()
        return states - states.mean(-1, keepdim=True) if self.centred else states


def take_apart(module: Any, width: int, device: torch.device, dtype: torch.dtype) -> FinalNorm:
    """Find which of the known forms a norm module computes, by comparing with the module itself.

    Families write the same two norms under many names, and some store the gain less one. Names are not asked: the
    form that gives what the module gives is the one.

    Raises:
        LensError: none does.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    eps = next((float(getattr(module, name)) for name in ("variance_epsilon", "eps") if hasattr(module, name)), 1e-5)
    gain = torch.ones(width) if weight is None else weight.detach().float().cpu()
    shift = None if bias is None else bias.detach().float().cpu()
    random = torch.Generator().manual_seed(0)
    # Off centre, so that a norm that takes the mean off is told from one that does not.
    probe = (torch.randn(4, width, generator=random) + 0.5).to(dtype)
    with torch.no_grad():
        expected = module(probe.to(device)).float().cpu()
    tolerance = (1e-4 if dtype == torch.float32 else 3e-2) * float(expected.abs().max())
    forms = [FinalNorm(stored, shift, centred, eps) for centred in (False, True) for stored in (gain, gain + 1)]
    # The nearest, not any near enough: with a large gain, the gain and the gain less one are both near.
    apart = [float((form(probe) - expected).abs().max()) for form in forms]
    nearest = forms[apart.index(min(apart))]
    if min(apart) <= tolerance:
        return FinalNorm(nearest.gain.to(device), None if shift is None else shift.to(device), nearest.centred, eps)
    raise LensError(f"the final norm, {type(module).__name__}, is neither an RMSNorm nor a LayerNorm; --norm own works")
