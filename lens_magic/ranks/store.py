"""What functions keep on a rank from one call to the next, each value of the type that its slot states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class Slot(Generic[_Value]):
    """The place of one value in a rank's store; the module whose value it is declares it: ``MODEL = Slot[Loaded]("model")``."""

    name: str


class Store:
    """The values of a rank. They belong to its model: with another model, or none, it begins empty."""

    def __init__(self) -> None:
        self._values: dict[Slot[Any], Any] = {}

    def get(self, slot: Slot[_Value]) -> _Value | None:
        """Return the value of a slot; None if there is none."""
        found: _Value | None = self._values.get(slot)
        return found

    def __getitem__(self, slot: Slot[_Value]) -> _Value:
        found: _Value = self._values[slot]
        return found

    def __contains__(self, slot: Slot[Any]) -> bool:
        return slot in self._values

    def __setitem__(self, slot: Slot[_Value], value: _Value) -> None:
        self._values[slot] = value

    def drop(self, slot: Slot[Any]) -> None:
        """Let go of a value, if there is one."""
        self._values.pop(slot, None)

    def clear(self) -> None:
        """Let go of all values."""
        self._values.clear()

    def __len__(self) -> int:
        return len(self._values)
