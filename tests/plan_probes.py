"""Functions that the tests of the plan run on ranks, which import this file by name."""

from __future__ import annotations

import ctypes
import gc
from typing import Any


def parameters(rank: Any) -> int:
    """Bytes of the parameters this rank holds, each once."""
    from lens_magic.model.load import loaded_on

    loaded = loaded_on(rank)
    held = {id(p): p.nbytes for p in loaded.model.parameters()}
    total = sum(held.values())
    starts = {p.untyped_storage().data_ptr() for p in loaded.model.parameters()}
    if loaded.head.weight.untyped_storage().data_ptr() not in starts:
        total += loaded.head.weight.nbytes + (loaded.head.bias.nbytes if loaded.head.bias is not None else 0)
    return total


def lens(rank: Any) -> int:
    """Bytes of a tuned lens or basis this rank holds."""
    from lens_magic.lens.projector import bytes_held

    return bytes_held(rank)


DROPPED: list[bool] = []


def room(rank: Any, drops: bool) -> Any:
    """What `room_of_rank` says, having noted what it was asked."""
    from lens_magic.rooms import room_of_rank

    DROPPED.append(drops)
    return room_of_rank(rank, drops)


def cache(rank: Any, prompts: list[list[int]], tokens: int) -> int:
    """Bytes of keys and values this rank held in a generation."""
    from lens_magic.model import generate
    from lens_magic.model.cache import nbytes
    from lens_magic.model.load import loaded_on

    kept: list[Any] = []
    original = generate.cache_of

    def watched(*arguments: Any) -> Any:
        kept.append(original(*arguments))
        return kept[-1]

    generate.cache_of = watched
    try:
        generate.generate(rank, loaded_on(rank), prompts, tokens)
    finally:
        generate.cache_of = original
    return nbytes(kept[0])


def cells_at_once(rank: Any) -> int:
    from lens_magic.lens import decode
    from lens_magic.model.load import loaded_on

    loaded = loaded_on(rank)
    return decode.most_cells(rank, loaded, -(-loaded.vocabulary // rank.size))


def give_back(rank: Any) -> None:
    """Have the allocator return what it keeps for the next time, which is as much as chance has it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def forget_lens(rank: Any) -> None:
    """Let go of a lens that an earlier run has handed out: what it takes counts as free."""
    from lens_magic.lens.projector import LENS

    rank.store.drop(LENS)


def use_onednn(rank: Any, on: bool) -> None:
    """Whether products may go to oneDNN, which on processors with bfloat16 instructions keeps a workspace in each process."""
    import torch

    torch._C._set_mkldnn_enabled(on)


def return_freed_memory(rank: Any) -> None:
    """Have the C library return freed blocks of 64 KB or more at once: what it keeps is as much as chance has it."""
    libc, mmap_threshold, trim_threshold = ctypes.CDLL(None), -3, -1
    libc.mallopt(mmap_threshold, 64 << 10)
    libc.mallopt(trim_threshold, 128 << 10)
