"""Applying steering terms while a model runs.

Which positions are steered, and how strongly, is computed on the host before each forward. For a decode step the values are
in tensors that stay at their addresses, so that a recorded step need not be recorded again when they change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..errors import LensError
from ..model.anatomy import SITES
from ..model.load import Loaded
from ..model.sites import Key, Visit, Visitor, Window
from ..options import choice
from .layer_types import check_layer_type
from .oneposition import OnePosition
from .operators import UNCLIPPED, Operation, Values, apply, by_term
from .term import MadeFor, SteeringTerm, Strength

_AHEAD = 64
"""Decode steps whose values are computed together; one at a time, that would be a hundredth of a small model's time."""


class Steering(Visitor):
    """Applies terms to a batch. Put it before the visitors that capture.

    Args:
        terms: in the order in which they are applied at the same site and layer.
        batch: number of sequences.
        movable: allow α and clip of each term to be changed during generation, with :meth:`move`.
    """

    changes = True

    def __init__(self, loaded: Loaded, terms: Sequence[SteeringTerm], batch: int = 1, movable: bool = False) -> None:
        self.terms = list(terms)
        self.batch = batch
        self._alphas = [term.alphas(batch) for term in terms]
        self._clips = [term.clip for term in terms]
        self._operations: dict[Key, list[Operation]] = {}
        for number, term in enumerate(self.terms):
            for layer, direction in sorted(term.directions.items()):
                placed = direction.to(loaded.device, torch.float32)
                clipped = movable or term.clip is not None
                operation = Operation(number, term, term.scale.get(layer, 1.0), placed, clipped)
                self._operations.setdefault((term.site, layer), []).append(operation)
        self._device = loaded.device
        shape = (len(self.terms), 3, batch, 1, 1)  # term, (m, m a, c), sequence, column
        self._now: list[Values] = []
        self._one = OnePosition(self._operations, torch.zeros(shape, dtype=torch.float32, device=loaded.device))
        self._ahead = range(0)  # positions whose values have been computed

    def move(self, strengths: Sequence[Strength]) -> None:
        """Set α and clip of each term from the next forward on. Every rank has to give the same."""
        alphas, clips = [[strength.alpha] * self.batch for strength in strengths], [strength.clip for strength in strengths]
        if (alphas, clips) != (self._alphas, self._clips):
            self._alphas, self._clips = alphas, clips
            self._ahead = range(0)

    def visits(self) -> Mapping[Key, Visit]:
        """Return the changes, by (site, layer)."""
        return {key: self._visit(key, operations) for key, operations in self._operations.items()}

    def prepare(self, window: Window) -> None:
        """Compute which positions are steered in the coming forward, and how strongly."""
        if window.length > 1:
            self._now = by_term(self._values(window.positions).to(self._device))
            return
        position = window.start - window.last
        if position not in self._ahead:
            self._ahead = range(position, position + _AHEAD)
            self._one.fill(self._values(self._ahead))
        self._one.write(position - self._ahead.start)

    def _values(self, positions: range) -> torch.Tensor:
        """Return m, m a and c for every term, sequence and position: ``[terms, 3, batch, positions, 1]``."""
        values = torch.zeros((len(self.terms), 3, self.batch, len(positions), 1), dtype=torch.float32)
        for number, term in enumerate(self.terms):
            mask = torch.tensor([term.covers(p) for p in positions], dtype=torch.float32)
            factors = mask * torch.tensor([term.factor(p) for p in positions], dtype=torch.float32)
            clip = self._clips[number]
            values[number, 2] = UNCLIPPED if clip is None else min(clip, UNCLIPPED)
            for sequence, alpha in enumerate(self._alphas[number]):
                if term.sequences is None or sequence in term.sequences:
                    values[number, 0, sequence, :, 0] = mask
                    values[number, 1, sequence, :, 0] = alpha * factors
        return values

    def _visit(self, key: Key, operations: Sequence[Operation]) -> Visit:
        at_step = self._one.changes[key]

        def visit(states: torch.Tensor, window: Window) -> torch.Tensor:
            # In float32: a 16-bit sum of several changes would lose small ones.
            h = states.float()  # [batch, length, d]
            if window.length == 1:
                for change in at_step:
                    h = change(h)
            else:
                for operation in operations:
                    h = apply(h, operation, self._now[operation.number])
            return h if h.dtype == states.dtype else h.to(states.dtype)

        return visit


def check(terms: Sequence[SteeringTerm], model: MadeFor) -> None:
    """Refuse terms that do not fit a model.

    Raises:
        LensError: a direction was made for another kind of model, was read where the model has another site or none, has
            another width, names a layer the model does not have, or is not finite.
    """
    for term in terms:
        choice("site", term.site, SITES)
        if not term.directions:
            raise LensError(f"{term.name!r} has no direction at any of the layers asked for")
        if term.made_for is not None and not term.made_for.fits(model):
            raise LensError(f"{term.name!r} was made for a {term.made_for}; the model loaded is a {model}")
        if model.family is not None:
            check_layer_type(term.name, term.layer_type, model.family)
        layers = model.layers or 0
        for layer, direction in term.directions.items():
            if not 0 <= layer < layers:
                raise LensError(f"{term.name!r} steers layer {layer}; the model has {layers}: 0 to {layers - 1}")
            if tuple(direction.shape) != (model.width,):
                raise LensError(
                    f"{term.name!r} has directions of width {direction.numel()}; "
                    f"the model's hidden states are {model.width} wide"
                )
            if not bool(direction.isfinite().all()):
                raise LensError(f"the direction of {term.name!r} at layer {layer} is not finite")
