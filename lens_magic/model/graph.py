"""Recording a decode step once and replaying it: a step of many small operations is bound by calling them one by one.

A recorded step repeats the same operations on the same tensors: on a GPU a CUDA graph, on a CPU what :mod:`..ranks.recording`
has noted. Everything that changes from step to step must therefore be in tensors that stay where they are, written before the
step and read after it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules import module as torch_module

from ..ranks.rank import Rank
from ..ranks.recording import Recording, Watching
from .fused import recorded

Step = Callable[[], torch.Tensor]
Replay = Callable[[], object]

BOUNDARY = 256  # a recorded step's attention reads on to a multiple of so many columns; there is a recording for each
LEAST = 16  # of fewer steps to come none is recorded: that takes as long as eight of them save

_KNOWN = ("torch", "transformers", "deepspeed", __package__.split(".")[0])
_ATTENTION = ("sdpa", "eager")  # others may take no mask, and a recorded step reads on to columns that are not filled yet
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Eager:
    """Runs each step as it is."""

    boundary = 1
    recorded = False
    calls_python = True

    def __call__(self, step: Step, shape: Hashable, like_it: int) -> torch.Tensor:
        """The step's result."""
        return step()

    def forget(self) -> None:
        """Nothing is kept."""


class Recorder(Protocol):
    """What records steps, on one kind of device.

    Attributes:
        calls_python: what a step asks of Python by :func:`..ranks.recording.do` is asked in a replay too.
    """

    calls_python: bool

    def warm_up(self, step: Step) -> torch.Tensor:
        """Run the first step of a shape as it is; what must not be initialised while recording is by then."""

    def record(self, step: Step) -> tuple[Replay | None, torch.Tensor]:
        """Run a step and record it: what replays it, None where nothing can, and the tensor that holds the results."""


class Recorded:
    """Records the step once for each shape, and replays it. Shapes only grow: of the recordings only the newest is kept."""

    boundary = BOUNDARY
    recorded = True

    def __init__(self, recorder: Recorder) -> None:
        self.calls_python = recorder.calls_python
        self._recorder = recorder
        self._shape: Hashable = None
        self._recording: tuple[Replay, torch.Tensor] | None = None  # of that shape
        self._refused = False

    def __call__(self, step: Step, shape: Hashable, like_it: int) -> torch.Tensor:
        """The step's result; the tensor is overwritten by the next.

        Args:
            shape: what the shapes of its tensors hang on.
            like_it: how many steps of that shape there may be from this one on.
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
        """Let go of the recording: an error's traceback may hold on to all the rest, and NCCL cannot end before its graphs."""
        self._recording = None


class OnCPU:
    """Records operations, and exchanges between ranks."""

    calls_python = True

    def warm_up(self, step: Step) -> torch.Tensor:
        """Nothing more than the step."""
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
        telling: whether this rank is the one to warn where a step cannot be recorded; the others need not repeat it.
    """

    calls_python = False

    def __init__(self, device: torch.device, telling: bool = True) -> None:
        self._device = device
        self._telling = telling
        self._watched: Watching | None = None

    def warm_up(self, step: Step) -> torch.Tensor:
        """The step, watched for what would be an error while a graph is recorded."""
        with recorded():  # so that every kernel has been made before one is recorded
            if self._watched is not None:
                return step()
            with Watching() as self._watched:
                return step()

    def record(self, step: Step) -> tuple[Replay | None, torch.Tensor]:
        """See :class:`Recorder`."""
        if self._watched is None or self._watched.refusal is not None:
            return None, step()
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # A pool of its own: the recording before has gone by now, and its pool with it. "thread_local": what the user's other
        # threads do with the GPU meanwhile is no error, and does not end the recording.
        recording = torch.cuda.graph(graph, pool, _recording_stream(self._device), capture_error_mode="thread_local")
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            try:
                with _no_garbage_collected(), recording, recorded():
                    result = step()  # runs nothing
            except RuntimeError as error:
                torch.cuda.set_stream(stream)
                self._give_up(error, pool)
                result = None
        if result is None:
            return None, step()
        graph.replay()
        return graph.replay, result

    def _give_up(self, error: RuntimeError, pool: tuple[int, int]) -> None:
        """Some operations copy to the host within (grouped products, before Hopper), which nobody can tell from outside."""
        for give_back in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
            with contextlib.suppress(RuntimeError):  # where torch has done so already
                give_back(torch.cuda.current_device(), pool)
        if self._telling:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"tokens come more slowly: a decode step cannot be made a CUDA graph ({reason})", stacklevel=2)


@contextlib.contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """What a notebook has left in cycles may be graphs and whatever else frees what no recording can have freed."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that graphs are recorded on; one, as torch keeps workspaces for every stream that had a matrix product."""
    return torch.cuda.Stream(device)


def runner_for(rank: Rank, backbone: nn.Module, device: torch.device) -> Eager | Recorded:
    """How decode steps of a model are run here, with what is attached to it by now."""
    if not all(map(_is_plain, backbone.modules())) or torch_module._has_any_global_hook():
        return Eager()
    config: Any = backbone.config
    if config._attn_implementation not in _ATTENTION:
        return Eager()
    if device.type == "cpu":
        return Recorded(OnCPU())
    # On a GPU the ranks' exchanges have to be kernels too.
    kernels = device.type == "cuda" and (rank.size == 1 or dist.get_backend() == "nccl")
    return Recorded(OnGPU(device, telling=rank.rank == 0)) if kernels else Eager()


def _is_plain(module: nn.Module) -> bool:
    """Whether a module runs no one else's Python code at every call, which a replay would leave out.

    Hooks are such code, and what accelerate does to fetch parameters, and models that a checkpoint brings its own code for.
    Compiled modules run operations that nobody else sees.
    """
    hooked = any(getattr(module, hooks) for hooks in _HOOKS) or hasattr(module, "_hf_hook")
    compiled = module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
    return not hooked and not compiled and type(module).__module__.split(".")[0] in _KNOWN
