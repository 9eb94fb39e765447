"""What a steering term does to hidden states.

All three operators are one formula: h ← h + (m a − m s h·v̂) v̂, where m says whether a position is steered, a is the value
to add (or to set the projection to) and s is 1 if the projection is removed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .term import SteeringTerm

Values = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""m, m a and c, ``[batch, length, 1]``; c limits a clipped change to c ‖h‖."""

UNCLIPPED = 2.0**100
"""A c that limits nothing. It is a power of two, so that dividing and then multiplying by it rounds nothing."""


class Operation(NamedTuple):
    """One term at one (site, layer).

    Attributes:
        number: index of the term.
        factor: factor on a at this layer.
        direction: ``[d]``, float32, on the model's device.
        clipped: whether the change has a limit, which may be moved.
    """

    number: int
    term: SteeringTerm
    factor: float
    direction: torch.Tensor
    clipped: bool


def by_term(values: torch.Tensor) -> list[Values]:
    """Return m, m a and c of each term, from ``[terms, 3, batch, length, 1]``."""
    return [(term[0], term[1], term[2]) for term in values]


def apply(h: torch.Tensor, operation: Operation, values: Values) -> torch.Tensor:
    """Apply one term at one (site, layer) to h, ``[batch, length, d]`` in float32."""
    masked, change, clip = values
    term, direction = operation.term, operation.direction
    if operation.factor != 1:
        change = change * operation.factor
    if term.operator != "add":
        projection = (h @ direction)[..., None]
        change = torch.addcmul(change, masked, projection, value=-1) if term.operator == "set" else -masked * projection
    if operation.clipped:
        limit = clip * torch.linalg.vector_norm(h, dim=-1, keepdim=True)
        change = torch.clamp(change, -limit, limit)
    steered = torch.addcmul(h, change, direction)
    if term.keep_norm:
        length = h.norm(dim=-1, keepdim=True) / steered.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        steered = torch.where(masked > 0, steered * length, h)
    return steered
