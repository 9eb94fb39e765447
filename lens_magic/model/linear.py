"""Short forwards for DeepSpeed's split linear layers, with only what generation needs.

DeepSpeed's own forward is for training too: each call goes through an autograd function, and each sum through three layers of
wrappers and checks. In a decode step of a small model on CPU ranks that takes as long as the matrix products themselves.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from ..ranks.rank import Rank
from .products import linear


def lighten(rank: Rank, blocks: Any) -> None:
    """Give the linear layers that DeepSpeed has split a short forward; otherwise they stay as they are.

    Layers of any other kind (gathered outputs, fused projections) are left alone.
    """
    short = _short_forms()
    for module in blocks.modules():
        form = short.get(type(module))
        if form is not None and not getattr(module, "gather_output", False):
            module.__class__ = form
            module.lens_rank = rank


@cache
def _short_forms() -> dict[type, type]:
    from deepspeed.module_inject.layers import LinearAllreduce, LinearLayer

    class ColumnShare(LinearLayer):
        """A layer that is split by its outputs: this rank's outputs."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return linear(states, self.weight, self.bias)

    class RowShare(LinearAllreduce):
        """A layer that is split by its inputs: the sum over the ranks, plus the bias."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            total: torch.Tensor = self.lens_rank.all_reduce(linear(states, self.weight))
            return total if self.bias is None else total.add_(self.bias)

    return {LinearLayer: ColumnShare, LinearAllreduce: RowShare}
