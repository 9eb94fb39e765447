"""The final norm in separate steps: centring, dividing by the scale, multiplying by the gain, adding the bias.

The model's own module does them all at once. Direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for
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
    """A final norm in float32: ``gain · (h − mean) / scale + bias``, where only a LayerNorm subtracts the mean.

    Attributes:
        gain: ``[d]``. bias: ``[d]`` or None.
        centred: whether the mean over the width is subtracted (LayerNorm) or not (RMSNorm).
        eps: added to the mean square under the root.
    """

    gain: torch.Tensor
    bias: torch.Tensor | None
    centred: bool
    eps: float

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the whole norm: ``[…, d]`` → ``[…, d]``, float32."""
        return self.add_bias(self.divided(states, self.scale(states)))

    def scale(self, states: torch.Tensor) -> torch.Tensor:
        """Return what the norm divides these states by: ``[…, d]`` → ``[…, 1]``."""
        return (self._centre(states).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def divided(self, states: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Centre, divide by a given scale and multiply by the gain: linear in the states."""
        return self._centre(states) / scale * self.gain

    def add_bias(self, states: torch.Tensor) -> torch.Tensor:
        """Add the norm's bias, if it has one."""
        return states if self.bias is None else states + self.bias

    def _centre(self, states: torch.Tensor) -> torch.Tensor:
        states = states.float()
        return states - states.mean(-1, keepdim=True) if self.centred else states


def take_apart(module: Any, width: int, device: torch.device, dtype: torch.dtype) -> FinalNorm:
    """Find which of the known forms a norm module computes, by comparing with the module itself.

    Families write the same two norms under many names, and some store the gain minus one. So names are ignored: the form
    that gives what the module gives is taken.

    Raises:
        LensError: no form does.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    eps = next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), 1e-5)
    eps = torch.finfo(dtype).eps if eps is None else float(eps)  # torch.nn.RMSNorm's default
    gain = torch.ones(width) if weight is None else weight.detach().float().cpu()
    shift = None if bias is None else bias.detach().float().cpu()
    random = torch.Generator().manual_seed(0)
    # Off centre, to tell a norm that subtracts the mean from one that does not.
    probe = (torch.randn(4, width, generator=random) + 0.5).to(dtype)
    with torch.no_grad():
        expected = module(probe.to(device)).float().cpu()
    tolerance = (1e-4 if dtype == torch.float32 else 3e-2) * float(expected.abs().max())
    forms = [FinalNorm(stored, shift, centred, eps) for centred in (False, True) for stored in (gain, gain + 1)]
    # The nearest, not just any within the tolerance: with a large gain, the gain and the gain minus one both are.
    apart = [float((form(probe) - expected).abs().max()) for form in forms]
    nearest = forms[apart.index(min(apart))]
    if min(apart) <= tolerance:
        return FinalNorm(nearest.gain.to(device), None if shift is None else shift.to(device), nearest.centred, eps)
    raise LensError(f"the final norm, {type(module).__name__}, is neither an RMSNorm nor a LayerNorm; --norm own works")
