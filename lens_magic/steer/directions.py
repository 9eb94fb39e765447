"""``Directions``: one direction for each of some layers, as an immutable value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch


class Directions(Mapping[int, torch.Tensor]):
    """``{layer: v̂}``, float32 ``[d]`` on the CPU; lookups return copies, so that what holds it stays what it is."""

    def __init__(self, directions: Mapping[int, torch.Tensor]) -> None:
        self._directions = {layer: directions[layer].detach().float().cpu().clone() for layer in sorted(directions)}

    def __getitem__(self, layer: int) -> torch.Tensor:
        return self._directions[layer].clone()

    def __iter__(self) -> Iterator[int]:
        return iter(self._directions)

    def __len__(self) -> int:
        return len(self._directions)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(v.equal(other[layer]) for layer, v in self._directions.items())

    def __hash__(self) -> int:
        return hash(tuple(self._directions))

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{layer}: tensor[{v.numel()}]' for layer, v in self._directions.items())}}}"
