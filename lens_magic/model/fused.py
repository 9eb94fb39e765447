"""Decode steps in fewer kernels: on a GPU a small model's step is bound by the number of kernels, not by their work.

Of a Qwen 3 layer's sixty kernels, norms take thirty-two, and the rotation of queries and keys ten. Here a norm takes two.
With Triton, in a step recorded as a CUDA graph, a norm takes one, as do the rotation and the MLP's gate, and attention takes
two, which use the whole GPU to read keys and values. (Called one by one, Triton's kernels take longer to launch than they
save.) Computation and rounding stay the model's own, except for the order of attention's sums, which nobody promises.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import types
import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..gpu import attention, steps
from .standing_in import Forward, standing_in

_THEIRS = "transformers.models."
_ROTATION, _HALVES = "apply_rotary_pos_emb", "rotate_half"
_FUNCTIONS, _CHOICE = "ALL_ATTENTION_FUNCTIONS", "get_interface"
_BY_TORCH = "transformers.integrations.sdpa_attention"

_column: torch.Tensor | None = None  # of the step that is being recorded
_by_kernels: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # attentions that are left to our kernels now


@contextlib.contextmanager
def recorded(column: torch.Tensor) -> Iterator[None]:
    """Declare that steps within the ``with`` block are recorded, or will be: the time to launch a kernel does not count.

    Args:
        column: int64 ``[1]`` on the device: the cache's column that a step writes, the last that its attention sees.
    """
    global _column
    before, _column = _column, column
    try:
        yield
    finally:
        _column = before


@contextlib.contextmanager
def fused(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Run a model's steps in few kernels within the ``with`` block, where that is a gain: on a GPU."""
    if device.type != "cuda":
        yield
        return
    kernels, attends = (there.trouble(device, dtype) is None for there in (steps, attention))
    found = {module: forward for module in model.modules() if (forward := _fused(module, kernels, attends)) is not None}
    attending = [module for module, forward in found.items() if isinstance(forward, _Attending)]
    plans = torch.backends.cuda.cudnn_sdp_enabled()
    # On Hopper torch prefers cuDNN's attention, which plans for tens of milliseconds at every new length, and all are new.
    torch.backends.cuda.enable_cudnn_sdp(False)
    _by_kernels.update(attending)
    try:
        with standing_in(found):
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(plans)
        _by_kernels.difference_update(attending)


def _fused(module: nn.Module, kernels: bool, attends: bool) -> Forward | None:
    """Return the replacement for a module's forward; None if the module is of no known kind.

    Args:
        kernels, attends: whether the kernels of a step, and those of attention, are available.
    """
    if has_known_norm(module):
        return norm_in_few(module, kernels)
    if kernels and has_known_gate(module):
        return gate_in_one(module)
    turns, attends = kernels and has_known_rotation(module), (attends or _is_headless(module)) and has_known_attention(module)
    return attention_in_few(module, turns, attends) if turns or attends else None


def stops_in_time(model: nn.Module) -> bool:
    """Whether the attention of recorded steps, within :func:`fused`, does not read the columns behind a step's own.

    Our kernels do not. If a module asks for torch's after all, its results are the same, and only take longer.
    """
    attentions = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    return bool(attentions) and all(map(_stops_in_time, attentions))


def _stops_in_time(module: Any) -> bool:
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    narrow = 0 < getattr(module, "head_dim", 0) <= attention.WIDEST.get(dtype, 0)
    capped = getattr(module, "attn_logit_softcapping", None) is not None
    return module in _by_kernels and narrow and not capped


class _Attending(functools.partial[Any]):
    """The forward of an attention that is left to our kernels in a recorded step."""


def has_known_norm(module: nn.Module) -> bool:
    """Whether a module is an RMS norm that computes weight · round(x / rms(x)), rounding to the model's type before the weight.

    (OLMo 2 and Gemma round after it, and are left as they are.)
    """
    return _is_theirs(module, "RMSNorm") and _same_code(type(module).forward, _llama().LlamaRMSNorm.forward)


def has_known_gate(module: nn.Module) -> bool:
    """Whether a module is an MLP that computes what Llama's does, with SiLU."""
    known = _is_theirs(module, "MLP") and _same_code(type(module).forward, _llama().LlamaMLP.forward)
    return known and "SiLU" in type(module.act_fn).__name__


def has_known_rotation(module: nn.Module) -> bool:
    """Whether a module is an attention that rotates queries and keys as Llama's does."""
    if not _is_theirs(module, "Attention"):
        return False
    forward = _own_forward(module)
    alike = [_same_code(forward.__globals__.get(name), getattr(_llama(), name)) for name in (_ROTATION, _HALVES)]
    return _ROTATION in forward.__code__.co_names and all(alike)


def has_known_attention(module: nn.Module) -> bool:
    """Whether a module is an attention that calls the attention function chosen from transformers' table."""
    if not _is_theirs(module, "Attention"):
        return False
    forward = _own_forward(module)
    asks = {_FUNCTIONS, _CHOICE} <= set(forward.__code__.co_names)
    return asks and forward.__globals__.get(_FUNCTIONS) is _transformers().ALL_ATTENTION_FUNCTIONS


def _is_headless(module: nn.Module) -> bool:
    """Whether this rank has no heads of an attention, as happens with fewer key/value heads than ranks."""
    return any(not parameter.numel() for parameter in module.parameters())


def _is_theirs(module: nn.Module, kind: str) -> bool:
    """Whether a module is transformers' own, of a class whose name ends with ``kind``, with its original forward."""
    kinds, forward = type(module), type(module).forward
    theirs = kinds.__module__.startswith(_THEIRS) and kinds.__name__.endswith(kind) and "forward" not in vars(module)
    its_own = getattr(forward, "__module__", None) == kinds.__module__
    return theirs and its_own and all(map(_from_transformers, _wrapped(forward)))


@functools.cache
def _llama() -> Any:
    return importlib.import_module("transformers.models.llama.modeling_llama")


def _transformers() -> Any:
    return importlib.import_module("transformers.modeling_utils")


def _wrapped(function: Any) -> Iterator[Any]:
    """Yield a function, the function that it wraps, and so on."""
    yield function
    while (function := getattr(function, "__wrapped__", None)) is not None:
        yield function


def _from_transformers(function: Any) -> bool:
    """Whether a function is written in transformers; what a wrapper says of its module is that of the function wrapped."""
    return isinstance(function, types.FunctionType) and str(function.__globals__.get("__name__")).startswith("transformers.")


def _own_forward(module: Any) -> Any:
    """Return the forward of a module's class itself: transformers wraps it where an argument has an earlier name, too."""
    return inspect.unwrap(type(module).forward)


def _same_code(one: Any, other: Any) -> bool:
    """Whether two functions of transformers have the same code; False if either is from elsewhere."""
    one, other = inspect.unwrap(one), inspect.unwrap(other)  # a wrapper's code is the same around any
    if not all(isinstance(each, types.FunctionType) and each.__module__.startswith(_THEIRS) for each in (one, other)):
        return False
    first, second = one.__code__, other.__code__
    numbers = [[value for value in code.co_consts if not isinstance(value, str)] for code in (first, second)]  # no strings
    return (first.co_code, first.co_names, numbers[0]) == (second.co_code, second.co_names, numbers[1])


def norm_in_few(norm: Any, kernels: bool = False) -> Forward:
    """Return a forward for a known norm that takes two kernels, and one in a recorded step."""
    width, epsilon = tuple(norm.weight.shape), norm.variance_epsilon

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        if kernels and _column is not None and hidden_states.dtype in steps.KINDS:
            return steps.rms_norm(hidden_states, norm.weight, epsilon)
        rounded = F.rms_norm(hidden_states, width, None, epsilon)
        scaled: torch.Tensor = norm.weight * rounded
        return scaled

    return forward


def gate_in_one(mlp: Any) -> Forward:
    """Return a forward for a known MLP, with one kernel between its matrix products in a recorded step."""
    inner = mlp.forward

    def forward(x: torch.Tensor) -> Any:
        if _column is not None and x.dtype in steps.KINDS:
            return mlp.down_proj(steps.gated(mlp.gate_proj(x), mlp.up_proj(x)))
        return inner(x)

    return forward


def attention_in_few(attention: Any, turns: bool, attends: bool) -> Forward:
    """Return a forward for a known attention that, in a recorded step, rotates and attends in few kernels.

    It is the attention's own code, with our functions under the global names by which it calls rotation and attention.
    """
    own = _own_forward(attention)
    names = dict(own.__globals__)
    if turns:
        names[_ROTATION] = _turning(names[_ROTATION])
    if attends:
        names[_FUNCTIONS] = types.SimpleNamespace(**{_CHOICE: _choosing(getattr(names[_FUNCTIONS], _CHOICE))})
    other = types.FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    other.__kwdefaults__ = own.__kwdefaults__
    return (_Attending if attends else functools.partial)(other, attention)


def _turning(theirs: Forward) -> Forward:
    """Return transformers' rotation of queries and keys, in one kernel where possible."""

    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *more: Any, **named: Any) -> Any:
        alike = q.shape[2] == 1 and q.dtype in steps.KINDS and {q.dtype, k.dtype, cos.dtype, sin.dtype} == {q.dtype}
        if _column is None or not alike or more or named:
            return theirs(q, k, cos, sin, *more, **named)
        return steps.rotate(q, k, cos, sin)

    return rotate


def _choosing(theirs: Forward) -> Forward:
    """Return transformers' choice of an attention function, with ours in place of torch's where possible."""

    def choose(name: str, default: Forward) -> Forward:
        chosen = theirs(name, default)
        known = getattr(chosen, "__module__", None) == _BY_TORCH
        return functools.partial(_attend, chosen) if known else chosen

    return choose


def _attend(
    theirs: Forward, module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **named: Any
) -> tuple[torch.Tensor, Any]:
    if not q.shape[1]:  # a kernel cannot be launched over no heads
        return q.transpose(1, 2), None
    scale = named.get("scaling")
    asks = named.get("dropout") or named.get("output_attentions")
    asks = asks or any(named.get(what) is not None for what in ("softcap", "position_bias", "cache"))
    if _column is None or asks or scale is None or not _suits(q, k, v, mask):
        attended: tuple[torch.Tensor, Any] = theirs(module, q, k, v, mask, **named)
        return attended
    return attention.attend(q, k, v, mask, float(scale), _column).transpose(1, 2), None


def _suits(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> bool:
    """Whether our kernels apply: one position, dtypes and widths they support, and a boolean mask."""
    (batch, heads, length, width), key_heads, columns = q.shape, k.shape[1], k.shape[2]
    alike = k.shape == v.shape and {q.dtype, k.dtype, v.dtype} == {q.dtype} and heads % key_heads == 0
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape[1:] != (1, 1, columns):
        return False
    return alike and length == 1 and width <= attention.WIDEST.get(q.dtype, 0) and mask.shape[0] in (1, batch)
