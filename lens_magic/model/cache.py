"""Key-value cache of a generation whose maximum length is known: allocated once, written by position.

A cache that grows by concatenation copies everything it holds at every token. With one of static shape, which a recorded
step needs, attention also reads columns that are not filled yet. This one is written in place and read up to where it is
filled; only a recorded step, whose shapes are frozen, reads on to the next boundary.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_ALIGNED = 16


def room_for(columns: int) -> int:
    """Round a number of columns up to what a cache allocates: GPU kernels read aligned memory without copying it first."""
    return -(-columns // _ALIGNED) * _ALIGNED


def cache_argument(model: Any) -> str:
    """Return the name under which a model takes its cache, which transformers changed in 5.24.

    A name that it does not know may be ignored: then every step would begin anew.
    """
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


class Place:
    """The columns of the sequence that the running forward writes and reads; shared by the layers of a cache.

    Attributes:
        capacity: number of columns allocated.
        start, length: the columns being written.
        visible: number of columns that attention reads.
        column: ``start`` as a tensor ``[1]`` with a fixed address, for recorded steps.
        recorded: whether the forward is recorded or replayed.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self.capacity = room_for(columns)
        self.start = 0
        self.length = 0
        self.visible = 0
        self.recorded = False
        self.column = torch.zeros(1, dtype=torch.long, device=device)

    def move(self, length: int, boundary: int = 1) -> None:
        """Move on to the next ``length`` columns; attention reads up to a multiple of ``boundary``."""
        self.start, self.length = self.start + self.length, length
        self.column.fill_(self.start)
        end = self.start + length
        self.visible = min(-(-end // boundary) * boundary, self.capacity)


class _Layer(CacheLayerMixin):
    """One layer's keys and values, ``[batch, heads, capacity, head width]``; sliding windows are left to the mask."""

    is_sliding = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    @property
    def is_compileable(self) -> bool:  # asks for a mask instead of a shape-dependent shortcut
        return self.place.recorded

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def empty(states: torch.Tensor) -> torch.Tensor:
            batch, heads, _, width = states.shape
            # Zeros: masked values are multiplied by 0, and 0 times uninitialised memory may be NaN.
            return states.new_zeros((batch, heads, self.place.capacity, width))

        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = empty(key_states), empty(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values, place = self.keys, self.values, self.place
        if place.recorded:
            keys.index_copy_(2, place.column, key_states)
            values.index_copy_(2, place.column, value_states)
        else:
            keys.narrow(2, place.start, place.length).copy_(key_states)
            values.narrow(2, place.start, place.length).copy_(value_states)
        return keys.narrow(2, 0, place.visible), values.narrow(2, 0, place.visible)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.place.visible, 0

    def get_seq_length(self) -> int:
        # A tensor in a recorded step, as a number would be frozen into the recording.
        return self.place.column[0] if self.place.recorded else self.place.start  # type: ignore[return-value]

    def get_max_length(self) -> int:
        return self.place.capacity


def cache_of(layers: int, place: Place) -> Cache:
    """Create a cache for a model with this number of layers."""
    return Cache(layers=[_Layer(place) for _ in range(layers)])


def nbytes(cache: Cache) -> int:
    """Return the bytes that the cache holds on this rank."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.is_initialized)
