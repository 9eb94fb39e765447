"""Splitting a model's blocks over the ranks: DeepSpeed's AutoTP, and what some families need after or instead of it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..ranks import collectives
from ..ranks.memory import mapped_ranges
from ..ranks.rank import Rank
from .adjust import ADJUSTMENTS
from .anatomy import Anatomy, part, replace_part
from .linear import lighten

_DONTNEED = 4  # madvise(2)


def shard(rank: Rank, model: Any, anatomy: Anatomy, dtype: torch.dtype) -> None:
    """Reduce the blocks to this rank's share. The head is kept out: AutoTP would split it over the hidden dimension.

    Every rank calls it. Emits ("loading", done, total); an interrupt raises KeyboardInterrupt on all ranks, between blocks.
    """
    if anatomy.autotp:
        _split_by_autotp(rank, model, anatomy, dtype)
    blocks = part(model, anatomy.blocks)
    lighten(rank, blocks)
    for done, block in enumerate(blocks if anatomy.adjust else (), start=1):
        for name in anatomy.adjust:
            ADJUSTMENTS[name](rank, block)
        release_pages()
        if not anatomy.autotp:
            rank.emit(("loading", done, len(blocks)))
        stop_if_asked(rank)


def _split_by_autotp(rank: Rank, model: Any, anatomy: Anatomy, dtype: torch.dtype) -> None:
    deepspeed = _import_deepspeed()
    blocks = part(model, anatomy.blocks)

    def after_block(block: Any, done: int) -> None:
        if not any(type(module).__module__.startswith("deepspeed.") for module in block.modules()):
            return  # DeepSpeed has split nothing yet: it walks the blocks more than once
        release_pages()
        rank.emit(("loading", done, len(blocks)))
        stop_if_asked(rank)

    backbone = part(model, anatomy.backbone)
    quietly = contextlib.redirect_stdout(io.StringIO())  # it prints what it found
    own_gpu = _own_gpu(collectives.device_for(rank))
    with _walking(blocks, after_block), quietly, own_gpu, _any_dtype(dtype), _unconverted(backbone):
        engine = deepspeed.init_inference(
            backbone,
            tensor_parallel={"tp_size": rank.size},
            dtype=dtype,
            replace_with_kernel_inject=False,
        )
    replace_part(model, anatomy.backbone, engine.module)


@contextlib.contextmanager
def _any_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make DeepSpeed accept ``dtype``: on most CPUs its own kernels lack float16, but here torch's are used, which have it."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    accelerator.supported_dtypes = lambda: [dtype]  # the instance's hides the class's
    try:
        yield
    finally:
        del accelerator.supported_dtypes


@contextlib.contextmanager
def _unconverted(module: torch.nn.Module) -> Iterator[None]:
    """Keep DeepSpeed from converting a whole module to the model's dtype, which its weights have already.

    What is float32 in a 16-bit model has to be: with 16-bit frequencies, rotary angles at position 2,000 are off by a radian.
    """
    conversions = ("half", "bfloat16", "float")
    for name in conversions:
        setattr(module, name, lambda: module)  # the instance's hides the class's
    try:
        yield
    finally:
        for name in conversions:
            delattr(module, name)


@contextlib.contextmanager
def _own_gpu(device: torch.device) -> Iterator[None]:
    """Set ``LOCAL_RANK`` to this rank's GPU, which DeepSpeed makes the process's current one; without it, that is GPU 0."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before


def _import_deepspeed() -> Any:
    """Import DeepSpeed, quietly and without its own operations, of which tensor parallelism needs none.

    To learn which it can build, it would try a compiler on each, for seconds, and report what is missing. It would also use
    its shared-memory all-reduce, which crashes if ranks exceed what it was set up for.
    """
    with _silenced():
        import deepspeed
        import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    vars(deepspeed.ops)["__compatible_ops__"] = defaultdict(bool)
    return deepspeed


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Drop what this process and its children write to stdout and stderr; exceptions still say what went wrong."""
    with contextlib.ExitStack() as stack:
        for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            kept = os.dup(descriptor)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, descriptor)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


@contextlib.contextmanager
def _walking(blocks: Any, after_block: Callable[[Any, int], None]) -> Iterator[None]:
    """Call ``after_block(block, done)`` when DeepSpeed, which walks a module's ``named_children``, is done with a block.

    Only progress, interrupts and the release of pages depend on it: if DeepSpeed walked differently, it would still shard.
    """
    children = list(blocks.named_children())

    def walk() -> Iterator[tuple[str, Any]]:
        for done, (name, child) in enumerate(children, start=1):
            yield name, child
            after_block(child, done)

    blocks.named_children = walk
    try:
        yield
    finally:
        del blocks.named_children


def stop_if_asked(rank: Rank) -> None:
    """Raise KeyboardInterrupt on all ranks if the user wants to stop; collective."""
    if rank.agree_to_stop():
        raise KeyboardInterrupt


def release_pages() -> None:
    """Release the pages of mapped safetensors files that this process has read; the page cache has those used again.

    Ranks on one host share these pages, but they count as a rank's memory for as long as it has them mapped. They are
    unmodified, so dropping them loses nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    for begin, end in mapped_ranges(".safetensors"):
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED)
