"""Reading a slice of every expert from a checkpoint.

transformers merges the tensors of a layer's experts, which a checkpoint stores one by one, into one tensor, on every rank in
its own memory. Here they are sliced before they are merged, so that a rank never holds more than its share of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, ConversionOps, MergeModulelist, WeightConverter

from ..ranks.rank import Rank
from .anatomy import Anatomy
from .head import shard_bounds

_UNITS = (64, 8, 1)  # slices of whole multiples suit matrix units, the first best
_ROW = 8  # grouped matrix products need rows of a multiple of 16 bytes


def inner_bounds(inner: int, ranks: int) -> list[int]:
    """Return where each rank's slice of an MLP's inner width begins, and where the last ends: ``ranks + 1`` numbers."""
    unit = next((unit for unit in _UNITS if inner % unit == 0 and inner // unit >= ranks), 1)
    return [unit * bound for bound in shard_bounds(inner // unit, ranks)]


def padded(width: int) -> int:
    """Return the width to which a slice is zero-padded. Zeros do not change results: they are multiplied by zeros again."""
    return -(-width // _ROW) * _ROW


class _Cut(ConversionOps):
    """Conversion step that slices each expert's matrix to what one rank keeps."""

    def __init__(self, dim: int, begin: int, end: int) -> None:
        self.dim, self.begin, self.end = dim, begin, end

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {pattern: [self._cut(matrix) for matrix in matrices] for pattern, matrices in input_dict.items()}

    def _cut(self, matrix: torch.Tensor) -> torch.Tensor:
        kept = matrix.narrow(self.dim, self.begin, self.end - self.begin)
        zeros = padded(self.end - self.begin) - (self.end - self.begin)
        return F.pad(kept, (0, 0, 0, zeros) if self.dim == 0 else (0, zeros)) if zeros else kept


@contextlib.contextmanager
def cut_while_reading(rank: Rank, anatomy: Anatomy, config: Any) -> Iterator[None]:
    """Let transformers build and load a model with only this rank's slice of every expert, within the ``with`` block.

    Args:
        config: of the model to build; within the block its experts' width is this rank's.
    """
    if anatomy.experts is None or rank.size == 1:
        yield
        return
    width = getattr(config, anatomy.experts)
    bounds = inner_bounds(width, rank.size)
    begin, end = bounds[rank.rank], bounds[rank.rank + 1]
    setattr(config, anatomy.experts, padded(end - begin))
    usual, changed = (get_checkpoint_conversion_mapping(config.model_type) for _ in range(2))  # each call returns a copy
    for step in changed:
        _cut_first(step, begin, end)
    register_checkpoint_conversion_mapping(config.model_type, changed, overwrite=True)
    try:
        yield
    finally:
        setattr(config, anatomy.experts, width)
        register_checkpoint_conversion_mapping(config.model_type, usual, overwrite=True)


def _cut_first(step: Any, begin: int, end: int) -> None:
    """Make a conversion step that merges experts slice them first; other steps stay as they are."""
    if not (isinstance(step, WeightConverter) and isinstance(step.operations[0], MergeModulelist)):
        return
    # Gate and up projections are split by their outputs, the down projection by its inputs.
    dim = 0 if any(isinstance(operation, Concatenate) for operation in step.operations) else 1
    step.operations.insert(0, _Cut(dim, begin, end))
