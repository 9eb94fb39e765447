"""Applying steering terms while a model runs.

All three operators are one formula: h ← h + (m a − m s h·v̂) v̂, where m says whether a position is steered, a is the value
to add (or to set the projection to) and s is 1 where the projection is taken away. m and m a are worked out on the host for
each forward and lie in tensors that stay where they are, so a recorded step needs no new recording when they change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LensError
from ..model.load import Loaded
from ..model.sites import Key, Visit, Window
from .term import MadeFor, SteeringTerm


class Steering:
    """Terms applied to a batch; a visitor, to be put before those that capture.

    Args:
        terms: in the order in which they are applied where they meet.
        batch: how many sequences.
    """

    def __init__(self, loaded: Loaded, terms: Sequence[SteeringTerm], batch: int = 1) -> None:
        self.terms = list(terms)
        self.batch = batch
        self._alphas = [term.alphas(batch) for term in terms]
        self._live: list[float] | None = None
        self._ops: dict[Key, list[tuple[int, float, torch.Tensor]]] = {}  # term, factor on α, direction
        for number, term in enumerate(self.terms):
            for layer, direction in sorted(term.directions.items()):
                placed = direction.to(loaded.device, torch.float32)
                self._ops.setdefault((term.site, layer), []).append((number, term.scale.get(layer, 1.0), placed))
        shape = (len(self.terms), 2, batch, 1, 1)  # term, (m, m a), sequence, column
        self._step = torch.zeros(shape, dtype=torch.float32, device=loaded.device)
        self._of_step = _by_term(self._step)
        self._now = self._of_step
        self._written: Any = None  # what the last step's values were worked out from

    def set_alphas(self, alphas: Sequence[float]) -> None:
        """Another α for each term, from the next forward on. Every rank gives the same."""
        self._live = list(alphas)

    def visits(self) -> Mapping[Key, Visit]:
        """The changes, by (site, layer)."""
        return {key: self._changer(operations) for key, operations in self._ops.items()}

    def prepare(self, window: Window) -> None:
        """Work out which positions are steered how strongly in the coming forward."""
        if window.length > 1:
            self._now = _by_term(self._values(window).to(self._step.device))
            return
        self._now = self._of_step
        position = window.start - window.last
        wanted = [(term.covers(position), term.factor(position)) for term in self.terms], self._live
        if wanted != self._written:
            self._step.copy_(self._step_values(position))
            self._written = wanted

    def finish(self, window: Window) -> None:
        """Nothing is kept."""

    def _values(self, window: Window) -> torch.Tensor:
        """m and m a for every term, sequence and column of the window: ``[terms, 2, batch, length, 1]``."""
        values = torch.zeros((len(self.terms), 2, self.batch, window.length, 1))
        for number, term in enumerate(self.terms):
            mask = torch.tensor([float(term.covers(p)) for p in window.positions])
            factors = mask * torch.tensor([term.factor(p) for p in window.positions])
            for sequence, alpha in enumerate(self._alphas_of(number)):
                if term.sequences is None or sequence in term.sequences:
                    values[number, 0, sequence, :, 0] = mask
                    values[number, 1, sequence, :, 0] = alpha * factors
        return values

    def _step_values(self, position: int) -> torch.Tensor:
        """The same for a single position, without the cost of making many small tensors at every token."""
        values = []
        for number, term in enumerate(self.terms):
            steered = term.covers(position)
            factor = term.factor(position) if steered else 0.0
            here = [term.sequences is None or sequence in term.sequences for sequence in range(self.batch)]
            masks = [float(steered and applies) for applies in here]
            values.append((masks, [m * alpha * factor for m, alpha in zip(masks, self._alphas_of(number), strict=True)]))
        return torch.tensor(values).view(self._step.shape)

    def _alphas_of(self, number: int) -> list[float]:
        return self._alphas[number] if self._live is None else [self._live[number]] * self.batch

    def _changer(self, operations: Sequence[tuple[int, float, torch.Tensor]]) -> Visit:
        def change(states: torch.Tensor, window: Window) -> torch.Tensor:
            # In float32: small changes would be lost to a 16-bit sum of several.
            h = states.float()  # [batch, length, d]
            for number, factor, direction in operations:
                h = _apply(h, self.terms[number], self._now[number], factor, direction)
            return h.to(states.dtype)

        return change


def _by_term(values: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """m and m a of each term, ``[batch, length, 1]``."""
    return [(term[0], term[1]) for term in values]


def _apply(
    h: torch.Tensor, term: SteeringTerm, values: tuple[torch.Tensor, torch.Tensor], factor: float, direction: torch.Tensor
) -> torch.Tensor:
    """One term at one (site, layer).

    Args:
        values: m and m a, ``[batch, length, 1]``.
        factor: on a, for this layer.
        direction: ``[d]``.
    """
    masked, change = values
    if factor != 1:
        change = change * factor
    if term.operator != "add":
        projection = (h @ direction)[..., None]
        change = torch.addcmul(change, masked, projection, value=-1) if term.operator == "set" else -masked * projection
    if term.clip is not None:
        limit = term.clip * torch.linalg.vector_norm(h, dim=-1, keepdim=True)
        change = torch.clamp(change, -limit, limit)
    steered = torch.addcmul(h, change, direction)
    if term.keep_norm:
        length = h.norm(dim=-1, keepdim=True) / steered.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        steered = torch.where(masked > 0, steered * length, h)
    return steered


def check(terms: Sequence[SteeringTerm], model: MadeFor) -> None:
    """Refuse terms that do not fit a model.

    Raises:
        LensError: a direction was made for another kind of model, has another width, names a layer the model does not
            have, or is not finite.
    """
    from ..model.anatomy import SITES

    for term in terms:
        if term.site not in SITES:
            raise LensError(f"site {term.site!r} is not one of {', '.join(SITES)}")
        if not term.directions:
            raise LensError(f"{term.name!r} has no direction at any of the layers asked for")
        made_for = term.made_for
        if made_for is not None and made_for != model:
            raise LensError(
                f"{term.name!r} was made for a {made_for.family} of {made_for.layers} layers, width {made_for.width}; "
                f"the model loaded is a {model.family} of {model.layers} layers, width {model.width}"
            )
        for layer, direction in term.directions.items():
            if not 0 <= layer < model.layers:
                raise LensError(f"{term.name!r} steers layer {layer}; the model has {model.layers}: 0 to {model.layers - 1}")
            if tuple(direction.shape) != (model.width,):
                raise LensError(
                    f"{term.name!r} has directions of width {direction.numel()}; "
                    f"the model's hidden states are {model.width} wide"
                )
            if not bool(direction.isfinite().all()):
                raise LensError(f"the direction of {term.name!r} at layer {layer} is not finite")
