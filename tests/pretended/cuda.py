"""A stand-in for ``torch.cuda``."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from . import card, graphs

BYTES = 8 << 30
_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
_META = 14  # c10::DeviceType
_CUDA = 1
_kept: list[Any] = []


class Stream:
    """Everything is done at once."""

    def __init__(self, *_: Any) -> None:
        pass

    def record_event(self) -> SimpleNamespace:
        return SimpleNamespace(synchronize=lambda: card.wait("an event"))


def stand_ins() -> list[tuple[Any, str, Any]]:
    """(where, name, what is to be there)."""
    _guard_devices()
    nothing = [(torch.cuda, name, lambda *_: None) for name in ("_lazy_init", "set_device", "set_stream", "empty_cache")]
    nothing += [(torch.cuda, name, lambda *_: None) for name in ("reset_peak_memory_stats", "set_rng_state", "manual_seed")]
    numbers = {"device_count": 1, "current_device": 0, "memory_reserved": 0, "memory_allocated": 0, "max_memory_allocated": 0}
    answers = {**numbers, "is_available": True, "is_initialized": True, "mem_get_info": (BYTES, BYTES)}
    answers |= {"get_device_name": "pretended", "graph_pool_handle": (0, 1), "get_device_capability": (9, 0)}
    properties = {"name": "pretended", "uuid": "pretended", "total_memory": BYTES, "major": 9, "minor": 0}
    answers |= {"get_device_properties": SimpleNamespace(**properties)}
    others = {
        "synchronize": lambda *_: card.wait("synchronize"),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "device": lambda _: contextlib.nullcontext(),
        "current_stream": Stream,
        "Stream": Stream,
        "CUDAGraph": graphs.Graph,
        "graph": graphs.graph,
    }
    data = card.moved_data(torch._C.TensorBase.data)
    return [
        *nothing,
        *((torch.cuda, name, lambda *_, answer=answer: answer) for name, answer in answers.items()),
        *((torch.cuda, name, other) for name, other in others.items()),
        (torch._C, "_host_emptyCache", lambda: None),
        (torch._C, "_cuda_getDevice", lambda: 0),
        (torch.nn.Parameter, "data", data),
        (card.OnCard, "data", data),
    ]


def _guard_devices() -> None:
    """Where torch changes from one GPU to another, have it stay. A torch without CUDA has nothing there, and says so."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, _REGISTRY)
    if guards[_CUDA] is not None:
        return
    functions = ctypes.cast(guards[_META], ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0][:26]
    always = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_void_p)(lambda _: _CUDA)  # the type, and the device of number 0
    address = ctypes.cast(always, ctypes.c_void_p).value
    table = (ctypes.c_void_p * 26)(address, address, address, *functions[3:])  # type, exchangeDevice, getDevice
    guard = (ctypes.c_void_p * 8)(ctypes.addressof(table))
    _kept.extend((always, table, guard))
    guards[_CUDA] = ctypes.addressof(guard)
