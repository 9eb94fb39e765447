"""Steering a single position, as in a decode step, with everything prepared that does not depend on h.

An addition then takes one sum at its site, or with a clip h's length, a minimum and a sum. On a small model every further
operation at every layer is a thousandth of a token's time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch

from ..model.sites import Key
from .operators import Operation, Values, apply, by_term

Change = Callable[[torch.Tensor], torch.Tensor]
"""h ``[batch, 1, d]`` in float32 → what replaces it."""


class OnePosition:
    """The changes at all sites, and the tensors they read.

    Args:
        operations: by (site, layer), in the order in which they apply.
        values: m, m a and c ``[terms, 3, batch, 1, 1]``; each step's are written here if a change reads them.

    Attributes:
        changes: by (site, layer), in the order in which they apply.
    """

    def __init__(self, operations: Mapping[Key, Sequence[Operation]], values: torch.Tensor) -> None:
        stages = {
            key: [(kind, list(run)) for kind, run in itertools.groupby(there, key=_kind)] for key, there in operations.items()
        }
        every = [stage for there in stages.values() for stage in there]
        additions = Additions([run for kind, run in every if kind == "plain"], values)
        clipped = ClippedAdditions([operation for kind, run in every if kind == "clipped" for operation in run], values)
        plain_ones, clipped_ones, of_term = iter(additions.changes), iter(clipped.changes), by_term(values)
        self.changes: dict[Key, list[Change]] = {key: [] for key in operations}
        for key, there in stages.items():
            for kind, run in there:
                if kind == "plain":
                    self.changes[key].append(next(plain_ones))
                elif kind == "clipped":
                    self.changes[key] += itertools.islice(clipped_ones, len(run))
                else:
                    self.changes[key] += [_general(operation, of_term[operation.number]) for operation in run]
        self._device = values.device
        self._made_ready: list[Additions | ClippedAdditions | Ahead] = [each for each in (additions, clipped) if each.changes]
        if any(kind == "general" for kind, _ in every):  # other changes do not read the values themselves
            self._made_ready.append(Ahead(values))

    def fill(self, coming: torch.Tensor) -> None:
        """Set the values of the coming steps: ``[terms, 3, batch, steps, 1]``."""
        by_step = coming.to(self._device).movedim(3, 0)[..., None]
        for each in self._made_ready:
            each.fill(by_step)

    def write(self, place: int) -> None:
        """Put the values of one of these steps into effect."""
        for each in self._made_ready:
            each.write(place)


def _kind(operation: Operation) -> str:
    """Return ``plain`` if what is added does not depend on h, ``clipped`` if only on its length, else ``general``."""
    if operation.term.operator != "add" or operation.term.keep_norm:
        return "general"
    return "clipped" if operation.clipped else "plain"


def _general(operation: Operation, values: Values) -> Change:
    return lambda h: apply(h, operation, values)


class Ahead:
    """A tensor that stays at its address, and the values it will hold at coming steps.

    Args:
        target: the tensor; a recorded step reads it.
    """

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target
        self._coming = target[None]
        self._since: list[int] = []  # for each step, since which step the values are the same
        self._written: int | None = None

    def fill(self, coming: torch.Tensor) -> None:
        """Set the values of the coming steps, ``[steps, *target.shape]``."""
        self._coming, self._since, self._written = coming, [], None
        for place, same in enumerate([False, *(coming[1:] == coming[:-1]).flatten(1).all(1).tolist()]):
            self._since.append(self._since[-1] if same else place)

    def write(self, place: int) -> bool:
        """Write the values of one of these steps; return whether they differ from those written before."""
        since = self._since[place]
        if since == self._written:
            return False
        self._written = since
        self.target.copy_(self._coming[since])
        return True


class Additions:
    """Runs of plain additions, each at one (site, layer), as one vector per run and sequence.

    Args:
        values: m, m a and c ``[terms, 3, batch, 1, 1]``, on the model's device.

    Attributes:
        changes: what each run does to h.
    """

    def __init__(self, runs: Sequence[Sequence[Operation]], values: torch.Tensor) -> None:
        self.changes: list[Change] = []
        if not runs:
            return
        terms, _, batch, _, _ = values.shape
        width = len(runs[0][0].direction)
        self._amounts = Ahead(values.new_zeros((batch, terms)))
        self._weights = values.new_zeros((len(runs), terms, width))
        self._vectors = values.new_zeros((len(runs), batch, width))
        for weights, vector, run in zip(self._weights, self._vectors[:, :, None], runs, strict=True):
            for operation in run:
                weights[operation.number] += operation.factor * operation.direction
            self.changes.append(self._change(vector))

    def fill(self, coming: torch.Tensor) -> None:
        """Set m, m a and c of the coming steps, ``[steps, terms, 3, batch, 1, 1]``."""
        self._amounts.fill(coming[:, :, 1, :, 0, 0].mT)

    def write(self, place: int) -> None:
        """Put the values of one of these steps into effect."""
        if self._amounts.write(place):
            torch.matmul(self._amounts.target, self._weights, out=self._vectors)

    @staticmethod
    def _change(vector: torch.Tensor) -> Change:
        return lambda h: h + vector


class ClippedAdditions:
    """Additions of at most c times h's length: sign(a) min(|a|, c ‖h‖) v̂ = min(|a| / c, ‖h‖) · (sign(a) c v̂).

    Args:
        values: m, m a and c ``[terms, 3, batch, 1, 1]``, on the model's device.

    Attributes:
        changes: what each operation does to h.
    """

    def __init__(self, operations: Sequence[Operation], values: torch.Tensor) -> None:
        self.changes: list[Change] = []
        if not operations:
            return
        batch, width = values.shape[2], len(operations[0].direction)
        self._numbers = [operation.number for operation in operations]
        self._factors = values.new_tensor([operation.factor for operation in operations])[:, None, None, None]
        self._directions = torch.stack([operation.direction for operation in operations])[:, None, None]
        self._limits = Ahead(values.new_zeros((len(operations), batch, 1, 1)))
        self._clips = Ahead(values.new_zeros((len(operations), batch, 1, 1)))
        self._units = values.new_zeros((len(operations), batch, 1, width))
        for limit, unit in zip(self._limits.target, self._units, strict=True):
            self.changes.append(self._change(limit, unit))

    def fill(self, coming: torch.Tensor) -> None:
        """Set m, m a and c of the coming steps, ``[steps, terms, 3, batch, 1, 1]``."""
        changes = coming[:, self._numbers, 1] * self._factors  # [steps, operations, batch, 1, 1]
        clips = coming[:, self._numbers, 2]
        self._limits.fill(changes.abs() / clips)
        self._clips.fill(changes.sign() * clips)

    def write(self, place: int) -> None:
        """Put the values of one of these steps into effect."""
        self._limits.write(place)
        if self._clips.write(place):
            torch.mul(self._clips.target, self._directions, out=self._units)

    @staticmethod
    def _change(limit: torch.Tensor, unit: torch.Tensor) -> Change:
        def add(h: torch.Tensor) -> torch.Tensor:
            length = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
            return torch.addcmul(h, torch.minimum(length, limit), unit)

        return add
