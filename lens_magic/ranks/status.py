"""What ``%lens status`` shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..tables import as_html
from ..words import size


@dataclass(frozen=True, repr=False)
class Status:
    """Ranks, devices, memory, model, vectors.

    Attributes:
        ranks: ``[{rank, pid, device, memory, free}, …]``; ``memory`` in bytes: allocated on a GPU; on a CPU the proportional
            set size. ``free``: bytes the rank can still take, its share of what its GPU or its host has left.
        model: the model's name, or None.
        steering: what is steering now (nothing, outside a steered generation).
        details: the model's dtype, layers and context.
        vectors: the steering vectors that the session keeps, one line each.
    """

    ranks: list[dict[str, Any]]
    model: str | None
    steering: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    vectors: list[str] = field(default_factory=list)

    def _summary(self) -> str:
        if self.model is None:
            return "no model is loaded"
        return ", ".join([self.model, *(f"{name} {value}" for name, value in self.details.items())])

    def _steering(self) -> list[str]:
        steering = f"steering: {'; '.join(self.steering)}" if self.steering else "nothing is steering"
        return [steering, *([f"vectors: {'; '.join(self.vectors)}"] if self.vectors else [])]

    def _rows(self) -> list[list[str]]:
        header = ["rank", "pid", "device", "memory", "free"]
        return [header] + [
            [str(r["rank"]), str(r["pid"]), r["device"], *(size(r[name]) for name in ("memory", "free"))] for r in self.ranks
        ]

    def __repr__(self) -> str:
        lines = [f"{a:>4}  {b:>8}  {c:8}  {d:>10}  {e:>10}" for a, b, c, d, e in self._rows()]
        return "\n".join([self._summary(), *lines, *self._steering()])

    def _repr_html_(self) -> str:
        header, *rows = self._rows()
        return as_html(self._summary(), header, rows, below=self._steering())
