"""``Directions``: one direction for each of some layers, as an immutable value."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch

from ..errors import LensError


def as_direction(name: str, values: Any) -> torch.Tensor:
    """Return one direction, of any length, as a tensor ``[d]`` on the CPU, float64.

    Args:
        name: what it is called in a message.
        values: anything torch or NumPy can read.

    Raises:
        LensError: it is not one row of real numbers.
    """
    with suppress(TypeError, ValueError, RuntimeError):
        row = torch.as_tensor(values, device="cpu").detach()
        if not row.is_complex() and row.numel() == max(row.shape, default=0) > 0:
            return row.double().reshape(-1)
    raise LensError(f"{name[:60]!r} is not one direction (a row of d numbers)")


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

    @property
    def digest(self) -> str:
        """SHA-256 of the directions and their layers."""
        hashed = hashlib.sha256()
        for layer, direction in self._directions.items():
            hashed.update(f"{layer}:".encode() + direction.numpy().tobytes())
        return hashed.hexdigest()

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{layer}: tensor[{v.numel()}]' for layer, v in self._directions.items())}}}"
