"""Recording a decode step once and replaying it: a step of many small operations is bound by the calls, one by one.

A recorded step repeats the same operations on the same tensors: on a GPU as a CUDA graph, on a CPU as a recording
(:mod:`..ranks.recording`). Everything that changes from step to step must therefore be in tensors with fixed addresses, which
are written before the step and read after it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import warnings
from collections.abc import Callable, Container, Hashable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules import module as torch_module

from ..errors import reason_of
from ..ranks.rank import Rank
from ..ranks.recording import Recording, Watching
from .fused import recorded, stops_in_time

Step = Callable[[], torch.Tensor]
Replay = Callable[[], object]

BOUNDARY = 256  # columns: a recorded step's attention reads up to a multiple of this; there is a recording for each
FAR = 2048  # columns: the same where attention stops at the step's own column: each recording takes tens of milliseconds
LEAST = 16  # steps: with fewer to come none is recorded, since recording takes as long as eight of them save

_KNOWN = ("torch", "transformers", "deepspeed", __package__.split(".")[0])
_ATTENTION = ("sdpa", "eager")  # others may take no mask, but a recorded step also reads columns not filled yet
_VISITS = f"{__package__}.sites"
_CAPTURING = "transformers.utils.output_capturing"  # whose hooks a model keeps once it has been asked for hidden states
_CAPTURED = ("output_hidden_states", "output_attentions", "output_router_logits")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Eager:
    """Runs each step without recording it."""

    boundary = 1
    recorded = False
    calls_python = True

    def __call__(self, step: Step, shape: Hashable, like_it: int) -> torch.Tensor:
        """Run a step and return its result."""
        return step()

    def forget(self) -> None:
        """Do nothing, as nothing is kept."""


class Recorder(Protocol):
    """An object that records steps on one kind of device.

    Attributes:
        calls_python: whether a replay repeats the actions that a step gives to :func:`..ranks.recording.do`.
    """

    calls_python: bool

    def warm_up(self, step: Step) -> torch.Tensor:
        """Run the first step of a shape without recording, to initialise what cannot be initialised while recording."""

    def record(self, step: Step) -> tuple[Replay | None, torch.Tensor]:
        """Run and record a step; return its replay (None if it cannot be recorded) and the tensor that holds the results."""


class Recorded:
    """Records the step once for each shape, and replays it. Shapes only grow, so only the newest recording is kept."""

    boundary = BOUNDARY
    recorded = True

    def __init__(self, recorder: Recorder) -> None:
        self.calls_python = recorder.calls_python
        self._recorder = recorder
        self._shape: Hashable = None
        self._recording: tuple[Replay, torch.Tensor] | None = None  # of that shape
        self._refused = False

    def __call__(self, step: Step, shape: Hashable, like_it: int) -> torch.Tensor:
        """Run or replay a step and return its result, a tensor that the next step overwrites.

        Args:
            shape: a value that determines the shapes of the step's tensors.
            like_it: how many steps of that shape there can be from this one on.
        """
        if self._recording is not None and shape == self._shape:
            replay, result = self._recording
            replay()
            return result
        if self._refused or like_it < LEAST:
            return step()
        if shape != self._shape:
            self._shape, self._recording = shape, None
            return self._recorder.warm_up(step)
        new, result = self._recorder.record(step)
        if new is None:
            self._refused = True
        else:
            self._recording = (new, result)
        return result

    def forget(self) -> None:
        """Drop the recording: an error's traceback may keep the rest alive, and NCCL cannot end before its graphs."""
        self._recording = None


class OnCPU:
    """Records operations, and exchanges between ranks."""

    calls_python = True

    def warm_up(self, step: Step) -> torch.Tensor:
        """Run the step; nothing else is needed."""
        return step()

    def record(self, step: Step) -> tuple[Replay | None, torch.Tensor]:
        """See :class:`Recorder`."""
        with Recording() as recording:
            result = step()
        return (recording.replay if recording.refusal is None else None), result


class OnGPU:
    """Records CUDA graphs.

    Args:
        device: the model's, which need not be the process's own.
        column: int64 ``[1]`` there: the cache's column that a step writes.
        telling: whether this rank warns if a step cannot be recorded; one rank is enough.
    """

    calls_python = False

    def __init__(self, device: torch.device, column: torch.Tensor, telling: bool = True) -> None:
        self._device = device
        self._column = column
        self._telling = telling
        self._watched: Watching | None = None

    def warm_up(self, step: Step) -> torch.Tensor:
        """Run the step and watch for what would be an error while a graph is recorded."""
        with recorded(self._column):  # so that every kernel is compiled before one is recorded
            if self._watched is not None:
                return step()
            with Watching() as self._watched:
                return step()

    def record(self, step: Step) -> tuple[Replay | None, torch.Tensor]:
        """See :class:`Recorder`."""
        if self._watched is None or self._watched.refusal is not None:
            return None, step()
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # A pool of its own: the previous recording is gone by now, and its pool with it. "thread_local": what the user's other
        # threads do with the GPU meanwhile is no error and does not end the recording.
        recording = torch.cuda.graph(graph, pool, _recording_stream(self._device), capture_error_mode="thread_local")
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            try:
                with _no_garbage_collected(), recording, recorded(self._column):
                    result = step()  # recorded, not run
            except RuntimeError as error:
                torch.cuda.set_stream(stream)
                self._give_up(error, graph, pool)
                result = None
        if result is None:
            return None, step()
        graph.replay()
        return graph.replay, result

    def _give_up(self, error: RuntimeError, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        """Clean up after a failed recording, and warn.

        Some operations copy to the host internally (grouped products, before Hopper), which cannot be detected from outside.
        """
        try:
            graph.pool()  # raises if the recording did not end
        except RuntimeError:  # an error of CUDA's: torch leaves the pool as it was, in use
            for give_back in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
                with contextlib.suppress(RuntimeError):  # if torch has done so already
                    give_back(torch.cuda.current_device(), pool)
        else:  # an error of torch's, before it called CUDA: the graph gives its pool back, and twice would end the process
            graph.reset()
        if self._telling:
            words = f"tokens come more slowly: a decode step cannot be made a CUDA graph ({reason_of(error)})"
            warnings.warn(words, stacklevel=2)


@contextlib.contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Disable garbage collection: a notebook's reference cycles may hold graphs and other things not to be freed meanwhile."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream for recording graphs: a single one, as torch keeps workspaces for every stream with matrix products."""
    return torch.cuda.Stream(device)


def runner_for(rank: Rank, backbone: nn.Module, column: torch.Tensor) -> Eager | Recorded:
    """Choose how to run a model's decode steps, given its device and what is attached to it by now.

    With NCCL it is a collective: an exchange has to be recorded by all ranks or by none.

    Args:
        column: the cache's column that a step writes, int64 ``[1]`` on the model's device.
    """
    device, boundary = column.device, _boundary_of(backbone, column.device)
    if device.type == "cuda" and rank.size > 1:  # the ranks' exchanges have to be kernels too
        by_kernels = dist.get_backend() == "nccl"
        boundary = int(rank.all_reduce(torch.tensor([boundary], device=device), "min")) if by_kernels else 0
    if not boundary:
        return Eager()
    run = Recorded(OnCPU() if device.type == "cpu" else OnGPU(device, column, telling=rank.rank == 0))
    if boundary == FAR:
        run.boundary = FAR
    return run


def _boundary_of(backbone: nn.Module, device: torch.device) -> int:
    """Return up to a multiple of how many columns recorded steps read; 0 if they cannot be recorded."""
    config: Any = backbone.config
    # transformers' hooks return at once unless the configuration asks for what they keep (a step's call asks for nothing).
    known = (_VISITS,) if any(getattr(config, name, False) for name in _CAPTURED) else (_VISITS, _CAPTURING)
    plain = all(_is_plain(module, known) for module in backbone.modules()) and not torch_module._has_any_global_hook()
    if not plain or config._attn_implementation not in _ATTENTION or device.type not in ("cpu", "cuda"):
        return 0
    return FAR if device.type == "cuda" and config._attn_implementation == "sdpa" and stops_in_time(backbone) else BOUNDARY


def _is_plain(module: nn.Module, known: Container[str]) -> bool:
    """Whether a module runs no third-party Python code at every call, which a replay would skip.

    Such code is that of hooks, of accelerate when it fetches parameters, and of models whose checkpoint brings its own.
    Compiled modules run operations that a recording cannot see.

    Args:
        known: names of Python modules whose hooks do nothing, or nothing that is not recorded.
    """
    hooks = (hook for kind in _HOOKS for hook in getattr(module, kind).values())
    hooked = any(getattr(hook, "__module__", None) not in known for hook in hooks) or hasattr(module, "_hf_hook")
    compiled = module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
    return not hooked and not compiled and type(module).__module__.split(".")[0] in _KNOWN
