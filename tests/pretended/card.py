"""Tensors on the pretended GPU, and the operations on them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from . import graphs

DEVICE = torch.device("cuda", 0)

waits: list[str] = []
"""What has waited for the GPU: values or shapes that were asked for, copies from and to pageable memory."""

_aten = torch.ops.aten
_COPIES = (_aten.copy_.default, _aten._to_copy.default)
_INDEXING = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default)
_SHAPED_BY_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_pinned: set[int] = set()  # where pinned memory begins
_under_way: list[Callable[[], object]] = []  # copies to pinned memory, which nobody has waited for yet


class OnCard(torch.Tensor):
    """A tensor on the pretended GPU; its values are in ``held``."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnCard:  # type: ignore[misc]
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Any], *_: Any) -> OnCard:
        return OnCard(parts["held"])

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCard({self.held})"

    def tolist(self) -> Any:  # which torch has for none but its own
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Operations(TorchDispatchMode):
    """Has what makes tensors out of nothing make them on the pretended GPU, where it is told to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def wait(why: str) -> None:
    """Wait for all that was asked of the pretended GPU."""
    waits.append(why)
    for copy in _under_way:
        copy()
    _under_way.clear()


def forget() -> None:
    """Nothing is left of what there was."""
    waits.clear()
    _under_way.clear()
    _pinned.clear()


def _run(func: Any, args: Any, named: dict[str, Any]) -> Any:
    if _is_composite(func):  # made of others, which on a GPU are not always those of a processor
        with Operations():
            result = func.decompose(*args, **named)
        if result is not NotImplemented:
            return result
    tensors = [one for one in tree_leaves((args, named)) if isinstance(one, torch.Tensor)]
    there = [one for one in tensors if isinstance(one, OnCard)]
    device = named.get("device")
    makes_there = bool(there) if device is None else torch.device(device).type == DEVICE.type
    if not there and not makes_there:
        return _on_host(func, args, named)
    if func is _aten._fused_sdp_choice.default:
        return 0  # attention by products and a softmax
    _require_one_device(func, tensors, there)
    if why := _why_it_waits(func, args, named, bool(there), makes_there):
        graphs.refuse_while_recording(why)
        wait(why)
    given, options = tree_map(lambda one: one.held if isinstance(one, OnCard) else one, (args, named))
    if device is not None:
        options["device"] = torch.device("cpu")
    if func is _aten.copy_.default and not isinstance(args[0], OnCard) and not why:
        return _copied_later(args[0], given[1])
    if func is _aten._to_copy.default and there and not makes_there and not why:
        into = torch.empty(given[0].shape, dtype=options.get("dtype") or given[0].dtype)
        return _copied_later(into.fill_(-7), given[0])
    result = graphs.run(functools.partial(_compute, func), func._schema, given, options)
    if makes_there != bool(there) and tensors and result.untyped_storage().data_ptr() == given[0].untyped_storage().data_ptr():
        result = result.clone()  # two devices share nothing
    if _gives_back_its_first(func):
        return args[0]
    return _placed(result, there) if makes_there else result


def _copied_later(into: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Pinned memory that is written to when somebody waits."""
    _under_way.append(functools.partial(into.copy_, values.clone()))
    return into


def _on_host(func: Any, args: Any, named: dict[str, Any]) -> Any:
    pinned = named.get("pin_memory")
    result = func(*args, **({**named, "pin_memory": False} if pinned else named))
    if pinned:
        _pinned.add(result.untyped_storage().data_ptr())
    return result


def _compute(func: Any, *args: Any, **named: Any) -> Any:
    if func is _aten.mm.dtype:  # of 16-bit numbers, exact in float32
        first, second, dtype = args
        return torch.mm(first.to(dtype), second.to(dtype))
    if func is _aten.histc.default and not args[0].is_floating_point():
        return torch.histc(args[0].float(), *args[1:]).to(args[0].dtype)
    return func(*args, **named)


def _require_one_device(func: Any, tensors: Sequence[torch.Tensor], there: Sequence[OnCard]) -> None:
    """Single numbers may come from the host, and indices, with a wait."""
    if func in _COPIES or not there:
        return
    here = [one for one in tensors if not isinstance(one, OnCard)]
    if here:
        graphs.note_constant(str(func))
    if any(one.ndim for one in here) and func not in _INDEXING:
        raise RuntimeError(f"{func}: expected all tensors on one device, got {[str(one.device) for one in tensors]}")


def _why_it_waits(func: Any, args: Any, named: dict[str, Any], from_card: bool, to_card: bool) -> str:
    if func is _aten.copy_.default:
        into, values = args[:2]
        crosses = isinstance(into, OnCard) != isinstance(values, OnCard)
        pinned = not isinstance(into, OnCard) and into.untyped_storage().data_ptr() in _pinned
        later = pinned and bool(args[2] if len(args) > 2 else named.get("non_blocking"))
        return f"{func} between devices" if crosses and not later else ""
    if func is _aten._to_copy.default:
        later = from_card and not to_card and bool(named.get("non_blocking"))
        return f"{func} between devices" if from_card != to_card and not later else ""
    if func in _INDEXING:
        indices = [one for one in args[1] if isinstance(one, torch.Tensor)]
        by_values = any(one.dtype in (torch.bool, torch.uint8) or not isinstance(one, OnCard) for one in indices)
        return f"{func} by values" if by_values else ""
    asks = func is _aten._local_scalar_dense.default or any(tag in func.tags for tag in _SHAPED_BY_VALUES)
    return str(func) if asks and from_card else ""


@functools.cache
def _is_composite(func: Any) -> bool:
    if func is _aten._fused_rms_norm.default:
        return False  # there is a kernel for it
    return func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@functools.cache
def _gives_back_its_first(func: Any) -> bool:
    schema = func._schema
    first = schema.arguments[0].alias_info if schema.arguments else None
    return bool(schema.is_mutable and len(schema.returns) == 1 and first is not None and first.is_write)


def _placed(result: Any, given: Sequence[OnCard]) -> Any:
    """Results as tensors on the pretended GPU. A view is an inference tensor where what it looks at is one."""
    place = given[0].held.untyped_storage().data_ptr() if given and not given[0].is_inference() else None
    views = any(isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() == place for one in tree_leaves(result))
    with torch.inference_mode(False) if views else contextlib.nullcontext():
        return tree_map(lambda one: OnCard(one) if isinstance(one, torch.Tensor) else one, result)


def placed(result: Any) -> Any:
    """What a kernel has given, on the pretended GPU."""
    return _placed(result, ())


def moved_data(base: Any) -> property:
    """``.data`` as torch has it, for parameters that are moved to the pretended GPU by setting it."""

    def set_data(self: torch.Tensor, values: torch.Tensor) -> None:
        if isinstance(values, OnCard) and not isinstance(self, OnCard):
            kept = dict(vars(self))
            torch.utils.swap_tensors(self, torch.nn.Parameter(values, requires_grad=self.requires_grad))
            vars(self).update(kept)
            return
        if isinstance(values, OnCard):
            self.held = values.held
        base.__set__(self, values)

    return property(base.__get__, set_data)
