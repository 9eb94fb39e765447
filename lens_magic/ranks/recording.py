"""Recording operations on a CPU and replaying them on the same tensors, as CUDA graphs do on a GPU.

A decode step of a small model is hundreds of operations of microseconds each; the model's Python code around them and the
allocation of results take as long again. A replay runs the operations alone, and writes each result where it was before.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

MOST_BYTES = 128 << 20
"""Limit on a recording's results, which stay in memory as long as it does; a recording that needs more is not kept."""

Function = Callable[..., object]

_aten = torch.ops.aten
_SAME_VALUES = (_aten.to.dtype, _aten.to.dtype_layout, _aten.to.device, _aten._to_copy.default, _aten.clone.default)
_SIZES = ("int", "SymInt")  # known on the host: lengths that attention returns as well
_UNKNOWN_SHAPE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

_listening: Recording | None = None


def do(action: Callable[[], object]) -> None:
    """Run an action that torch does not know of, such as an exchange between ranks, now and in every replay."""
    if _listening is None:
        action()
    else:
        _listening.do(action)


class Watching(TorchDispatchMode):
    """Checks whether the operations within a ``with`` block can be recorded at all.

    Attributes:
        refusal: why they cannot: what Python does next depends on a tensor's values. None if they can.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refusal: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.refusal is None and _kind(func).waits and not _is_plain_index(func, args):
            self._refuse(f"{func} waits for a value")
        return result

    def _refuse(self, why: str) -> None:
        self.refusal = why


class Recording(Watching):
    """Records the operations within a ``with`` block, in inference mode.

    Whatever comes from Python (a number, a branch, a slice's bounds) is frozen into the recording. If something cannot be
    recorded, everything still runs as usual, and :attr:`refusal` says why.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Function, tuple[Any, ...], dict[str, Any]]] = []
        self._made: set[int] = set()  # storages of the results made here, by address
        self._bytes = 0  # of those
        self._written: set[int] = set()  # storages that were written to
        self._constants: dict[int, int] = {}  # operations on no tensor, and the storages of their results

    def __enter__(self) -> Recording:
        global _listening
        super().__enter__()
        _listening = self
        return self

    def __exit__(self, *error: Any) -> None:
        global _listening
        _listening = None
        super().__exit__(*error)
        # Results made from numbers alone and not written to since are there already.
        needless = {number for number, place in self._constants.items() if place not in self._written}
        self._operations = [each for number, each in enumerate(self._operations) if number not in needless]

    def replay(self) -> None:
        """Run all recorded operations again."""
        for function, positional, named in self._operations:
            function(*positional, **named)

    def do(self, action: Callable[[], object]) -> None:
        """Run an action now, and as a whole in a replay."""
        with self._not_listening():
            action()
        self._note(action)

    @contextlib.contextmanager
    def _not_listening(self) -> Iterator[None]:
        global _listening
        _listening = None
        try:
            yield
        finally:
            _listening = self

    def _note(self, function: Function, *positional: Any, **named: Any) -> None:
        if self.refusal is None:
            self._operations.append((function, positional, named))

    def _refuse(self, why: str) -> None:
        super()._refuse(why)  # and everything recorded is released
        self._operations.clear()
        self._constants.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _listening is not self:
            return func(*args, **(kwargs or {}))
        with self._not_listening():  # operations within an operation are part of it
            result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.refusal is None:
            self._take(func, args, kwargs or {}, result)
        return result

    def _take(self, func: Any, args: Any, named: Any, result: Any) -> None:
        kind = _kind(func)
        given = {_place(one) for one in _tensors((args, *named.values()))}
        results = list(_tensors(result))
        if kind.writes:
            self._written |= given
        if kind.foreign:
            self._note(_again, func, args, named, results)
            return
        if kind.writes:
            self._note(kind.quick or func, *args, **named)
            return
        places = [_place(one) for one in results]
        if given.issuperset(places):
            return  # a view of its input, which is in its place already
        new = [one for place, one in zip(places, results, strict=True) if place not in self._made]
        self._bytes += sum(one.untyped_storage().nbytes() for one in new)
        self._made.update(places)
        if self._bytes > MOST_BYTES:
            self._refuse(f"more than {MOST_BYTES >> 20} MiB of results")
            return
        if not given and not kind.random:
            self._constants[len(self._operations)] = places[0]
        if func in _SAME_VALUES:
            self._note(result.copy_, args[0])
            return
        for into, out in kind.into:
            there = {**named, out: result}
            if _takes(into, func, args, there):
                self._note(into, *args, **there)
                return
        self._note(_again, func, args, named, results)


@dataclass(frozen=True)
class _Kind:
    """Properties of an operation.

    Attributes:
        foreign: not one of torch's own, so that its schema may be incomplete.
        writes: changes its arguments.
        waits: needs a tensor's values on the host, or its result's shape depends on them.
        random: draws random numbers.
        quick: torch's Python function for it, if there is one: it takes half the time of calling the operator itself.
        into: variants that write their result to a given tensor, and the name of that argument; the fastest first.
    """

    foreign: bool
    writes: bool
    waits: bool
    random: bool
    quick: Function | None
    into: tuple[tuple[Function, str], ...]


@functools.cache
def _kind(func: Any) -> _Kind:
    schema = func._schema
    if func.namespace != "aten":
        return _Kind(foreign=True, writes=True, waits=False, random=False, quick=None, into=())
    known = all("Tensor" in str(one.type) or str(one.type) in _SIZES for one in schema.returns)
    waits = any(tag in func.tags for tag in _UNKNOWN_SHAPE) or not known
    random = torch.Tag.nondeterministic_seeded in func.tags
    quick = _quick(func)
    return _Kind(False, schema.is_mutable, waits, random, quick, () if schema.is_mutable else _forms(func, quick))


# Where torch keeps its functions for Python. Its own functions written in Python call those in the last two.
_HOMES = [home for home in (torch, F, *(getattr(torch._C, name, None) for name in ("_nn", "_linalg"))) if home is not None]


def _quick(func: Any) -> Function | None:
    name = func.overloadpacket.__name__
    if func._schema.is_mutable:
        in_place: Function | None = getattr(torch.Tensor, name, None) if name.endswith("_") else None
        return in_place
    for home in _HOMES:
        found: Function | None = getattr(home, name, None)
        if isinstance(found, type(torch.mul)):  # not a function written in Python, which may do something else
            return found
    return None


def _forms(func: Any, quick: Function | None) -> tuple[tuple[Function, str], ...]:
    taken = [(each.name, str(each.type)) for each in func._schema.arguments]
    there = func.overloadpacket.overloads()
    for name in ("out", f"{func._overloadname}_out"):  # looking up the others would take megabytes
        overload = getattr(func.overloadpacket, name) if name in there else None
        if overload is None or len(func._schema.returns) != 1:
            continue
        inputs = [(each.name, str(each.type)) for each in overload._schema.arguments if not each.is_out]
        outs = [each.name for each in overload._schema.arguments if each.is_out]
        if len(outs) == 1 and inputs == taken:
            return (*(((quick, "out"),) if quick else ()), (overload, outs[0]))
    return ()


_tried: dict[object, bool] = {}


def _takes(into: Function, func: Any, args: Any, named: dict[str, Any]) -> bool:
    """Whether a variant takes an operation's arguments. If that is not known yet, it is tried: the operation runs once more."""
    case = (into, func, len(args), *named)
    if case not in _tried:
        try:
            into(*args, **named)
        except (TypeError, RuntimeError):
            _tried[case] = False
        else:
            _tried[case] = True
    return _tried[case]


def _again(func: Any, args: Any, named: Any, results: list[torch.Tensor]) -> None:
    """Run an operation that always makes new results, and copy them to where they were before."""
    for before, after in zip(results, _tensors(func(*args, **named)), strict=True):
        before.copy_(after)


def _is_plain_index(func: Any, args: Any) -> bool:
    """Whether an operation is indexing by numbers, whose result's shape is known."""
    return func is _aten.index.Tensor and not any(one.dtype in (torch.bool, torch.uint8) for one in _tensors(args[1]))


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
