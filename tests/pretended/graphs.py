"""CUDA graphs on the pretended GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

made: list[Graph] = []
_recording: list[Graph] = []


class Graph:
    """What was done while it was recorded.

    Attributes:
        replays: how often it was replayed.
        constants: operations that a number of the host's went into, which every replay uses again.
    """

    def __init__(self) -> None:
        self.replays = 0
        self.constants: list[str] = []
        self._operations: list[tuple[Callable[..., Any], Any, dict[str, Any], list[torch.Tensor]]] = []
        self._results: dict[int, torch.Tensor] = {}  # by where they are
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # what was written to, and a copy
        made.append(self)

    @property
    def size(self) -> int:
        """How many operations it has."""
        return len(self._operations)

    def run(self, act: Callable[..., Any], schema: Any, args: Any, named: dict[str, Any]) -> Any:
        """Do something, for its shapes, and note it."""
        if schema is not None and schema.is_mutable:
            given = [*zip(args, schema.arguments, strict=False)]
            given += [(named[one.name], one) for one in schema.arguments if one.name in named]
            self.keep(*(value for value, one in given if one.alias_info is not None and one.alias_info.is_write))
        result = act(*args, **named)
        places = {_place(one) for one in tree_leaves((args, named)) if isinstance(one, torch.Tensor)}
        new = [one for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        writes = schema is None or schema.is_mutable
        if writes or not places.issuperset(map(_place, new)):  # else a view, which is there already
            self._results |= {} if writes else {_place(one): one for one in new}
            self._operations.append((act, args, named, [] if writes else new))
        return result

    def keep(self, *written: Any) -> None:
        """Keep what is about to be written over, unless it was made here."""
        for one in written:
            if isinstance(one, torch.Tensor) and _place(one) not in {*self._results, *self._before}:
                self._before[_place(one)] = (one.untyped_storage(), one.untyped_storage().clone())

    def end(self) -> None:
        """Recording has run nothing."""
        for storage, before in self._before.values():
            storage.copy_(before)
        for result in self._results.values():
            if result.is_floating_point():
                result.fill_(torch.nan)

    def replay(self) -> None:
        """Do it all, on the same tensors."""
        self.replays += 1
        for act, args, named, results in self._operations:
            again = [one for one in tree_leaves(act(*args, **named)) if isinstance(one, torch.Tensor)]
            for before, after in zip(results, again, strict=False):
                before.copy_(after)


@contextlib.contextmanager
def graph(recording: Graph, *_: Any, **__: Any) -> Iterator[None]:
    """In place of ``torch.cuda.graph``."""
    _recording.append(recording)
    try:
        yield
    finally:
        _recording.pop()
        recording.end()


def run(act: Callable[..., Any], schema: Any, args: Any, named: dict[str, Any]) -> Any:
    """Do something on the pretended GPU; into the graph that is being recorded, if one is."""
    return _recording[-1].run(act, schema, args, named) if _recording else act(*args, **named)


def refuse_while_recording(what: str) -> None:
    """As CUDA does."""
    if _recording:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")


def note_constant(what: str) -> None:
    """A number of the host's goes into an operation."""
    if _recording:
        _recording[-1].constants.append(what)


def write_to(tensor: torch.Tensor, action: Callable[[], Any]) -> None:
    """Write to a tensor by something that torch does not know of."""
    if _recording:
        _recording[-1].keep(tensor)
    run(action, None, (), {})


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
