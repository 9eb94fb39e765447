"""Recording what a CPU does, to do it again on the same tensors: to a processor what a CUDA graph is to a GPU.

A decode step of a small model is hundreds of operations of microseconds each; the model's Python code around them, and making
room for each result, take as long again. A replay is the operations alone, each result written where it was before.
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
"""Results stay in memory as long as a recording; one that would need more is not kept."""

Function = Callable[..., object]

_aten = torch.ops.aten
_SAME_VALUES = (_aten.to.dtype, _aten.to.dtype_layout, _aten.to.device, _aten._to_copy.default, _aten.clone.default)
_SIZES = ("int", "SymInt")  # known on the host: lengths that attention gives along
_UNKNOWN_SHAPE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

_listening: Recording | None = None


def do(action: Callable[[], object]) -> None:
    """Do something that torch does not know of, such as an exchange between ranks: now, and whenever it is replayed."""
    if _listening is None:
        action()
    else:
        _listening.do(action)


class Watching(TorchDispatchMode):
    """Notices whether what is done within a ``with`` block can be recorded at all.

    Attributes:
        refusal: why it cannot: what Python does next depends on a tensor's values. None where it can.
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
    """What is done within a ``with`` block, in inference mode.

    Whatever comes from Python (a number, a branch, a slice's bounds) is frozen into it. What cannot be recorded is noticed:
    everything is done as ever, and :attr:`refusal` says why.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Function, tuple[Any, ...], dict[str, Any]]] = []
        self._made: set[int] = set()  # storages of the results made here, by address
        self._bytes = 0  # of those
        self._written: set[int] = set()  # storages that were written to
        self._constants: dict[int, int] = {}  # operations on no tensor, and where their results are

    def __enter__(self) -> Recording:
        global _listening
        super().__enter__()
        _listening = self
        return self

    def __exit__(self, *error: Any) -> None:
        global _listening
        _listening = None
        super().__exit__(*error)
        # What was made of numbers alone and not written to since is there already.
        needless = {number for number, place in self._constants.items() if place not in self._written}
        self._operations = [each for number, each in enumerate(self._operations) if number not in needless]

    def replay(self) -> None:
        """Do it all again."""
        for function, positional, named in self._operations:
            function(*positional, **named)

    def do(self, action: Callable[[], object]) -> None:
        """Do something now, and as a whole in a replay."""
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
        super()._refuse(why)  # and nothing that was made is held on to
        self._operations.clear()
        self._constants.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _listening is not self:
            return func(*args, **(kwargs or {}))
        with self._not_listening():  # what is done within an operation is done by it
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
            return  # a view of what it was given, which is in its place already
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
    """What there is to know of an operation.

    Attributes:
        foreign: not one of torch's own, so that its schema may not tell everything.
        writes: it changes what it is given.
        waits: needs a tensor's values on the host, or its result's shape depends on them.
        random: draws random numbers.
        quick: torch's Python function for it, where there is one: it takes half the time that the operator's own call does.
        into: forms that write their result to a tensor they are given, and that argument's name; the quickest first.
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


# Where torch keeps what it offers to Python. The last two are what its own functions written in Python call.
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
    """Whether a form takes an operation's arguments. Where that is not known it is tried: the operation is done again."""
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
    """Do an operation that always makes new results, and copy them to where they were before."""
    for before, after in zip(results, _tensors(func(*args, **named)), strict=True):
        before.copy_(after)


def _is_plain_index(func: Any, args: Any) -> bool:
    """Whether it is indexing by numbers, whose result's shape is known."""
    return func is _aten.index.Tensor and not any(one.dtype in (torch.bool, torch.uint8) for one in _tensors(args[1]))


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
