"""A decode step in fewer kernels: on a GPU a small model's is bound by how many it has, not by what they compute.

Of a Qwen 3 layer's sixty, norms are thirty-two, and turning queries and keys by their angles ten. Norms run in two kernels
each; where Triton can be had and a step is recorded as a CUDA graph, in one, and so do rotation and the MLP's gate, and a mask
is brought to its form once. (Called one by one, kernels of Triton take longer to start than they save.) What is computed and
where it is rounded stay the model's own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..gpu import steps

_THEIRS = "transformers.models."
_ROTATION, _HALVES = "apply_rotary_pos_emb", "rotate_half"

Forward = Callable[..., Any]


class Masks:
    """Masks of yes and no as what is added to scores: attention makes that of them in every layer anew, in three kernels."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # with the mask itself, so that its number stays its own

    def additive(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """0 where it is yes, −∞ elsewhere; the same tensor for the same mask."""
        if id(mask) not in self._made:
            none = torch.zeros((), dtype=dtype, device=mask.device)
            self._made[id(mask)] = mask, torch.where(mask, none, -torch.inf)
        return self._made[id(mask)][1]


_recorded: list[Masks] = []


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """A step in here is, or will be, recorded: what a kernel takes to be started counts for nothing."""
    _recorded.append(Masks())
    try:
        yield
    finally:
        _recorded.pop()


@contextlib.contextmanager
def fused(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Have a model's steps run in few kernels for a while, where that is a gain: on a GPU."""
    found: list[tuple[Any, Forward]] = []
    if device.type == "cuda":
        kernels = steps.trouble(device, dtype) is None
        found = [(module, forward) for module in model.modules() if (forward := _fused(module, kernels)) is not None]
    for module, forward in found:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in found:
            del module.forward


def _fused(module: nn.Module, kernels: bool) -> Forward | None:
    """What a module's forward becomes, where it is one of those known."""
    if has_known_norm(module):
        return norm_in_few(module, kernels)
    if kernels and has_known_gate(module):
        return gate_in_one(module)
    if kernels and has_known_rotation(module):
        return attention_in_few(module)
    return None


def has_known_norm(module: nn.Module) -> bool:
    """Whether it is an RMS norm that gives weight · round(x / rms(x)), rounded to the model's type before the weight.

    (OLMo 2 and Gemma round after it, and are left as they are.)
    """
    return _is_theirs(module, "RMSNorm") and _same_code(type(module).forward, _llama().LlamaRMSNorm.forward)


def has_known_gate(module: nn.Module) -> bool:
    """Whether it is an MLP that computes what Llama's does, with SiLU."""
    known = _is_theirs(module, "MLP") and _same_code(type(module).forward, _llama().LlamaMLP.forward)
    return known and "SiLU" in type(module.act_fn).__name__


def has_known_rotation(module: nn.Module) -> bool:
    """Whether it is an attention that turns queries and keys as Llama's does."""
    if not _is_theirs(module, "Attention"):
        return False
    forward = type(module).forward
    alike = [_same_code(forward.__globals__.get(name), getattr(_llama(), name)) for name in (_ROTATION, _HALVES)]
    return _ROTATION in forward.__code__.co_names and all(alike)


def _is_theirs(module: nn.Module, kind: str) -> bool:
    """Whether it is a module of a kind as transformers has it, its forward put in place by nobody else."""
    kinds, forward = type(module), type(module).forward
    theirs = kinds.__module__.startswith(_THEIRS) and kinds.__name__.endswith(kind) and "forward" not in vars(module)
    return theirs and isinstance(forward, types.FunctionType) and forward.__module__ == kinds.__module__


@functools.cache
def _llama() -> Any:
    return importlib.import_module("transformers.models.llama.modeling_llama")


def _same_code(one: Any, other: Any) -> bool:
    """Whether two functions of transformers do the same; one that somebody else has put there is none of them."""
    if not all(isinstance(each, types.FunctionType) and each.__module__.startswith(_THEIRS) for each in (one, other)):
        return False
    first, second = one.__code__, other.__code__
    numbers = [[value for value in code.co_consts if not isinstance(value, str)] for code in (first, second)]  # and no words
    return (first.co_code, first.co_names, numbers[0]) == (second.co_code, second.co_names, numbers[1])


def norm_in_few(norm: Any, kernels: bool = False) -> Forward:
    """The forward of a known norm in two kernels, in a recorded step in one."""
    width, epsilon = tuple(norm.weight.shape), norm.variance_epsilon

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        if kernels and _recorded and hidden_states.dtype in steps.KINDS:
            return steps.rms_norm(hidden_states, norm.weight, epsilon)
        rounded = F.rms_norm(hidden_states, width, None, epsilon)
        scaled: torch.Tensor = norm.weight * rounded
        return scaled

    return forward


def gate_in_one(mlp: Any) -> Forward:
    """The forward of a known MLP, with one kernel between its matrix products in a recorded step."""
    inner = mlp.forward

    def forward(x: torch.Tensor) -> Any:
        if _recorded and x.dtype in steps.KINDS:
            return mlp.down_proj(steps.gated(mlp.gate_proj(x), mlp.up_proj(x)))
        return inner(x)

    return forward


def attention_in_few(attention: Any) -> Forward:
    """The forward of a known attention, in which queries and keys of a recorded step are turned by one kernel.

    It is the attention's own, with another function by the name of the one that turns them.
    """
    own = type(attention).forward
    theirs = own.__globals__[_ROTATION]

    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *more: Any, **named: Any) -> Any:
        alike = q.shape[2] == 1 and q.dtype in steps.KINDS and {q.dtype, k.dtype, cos.dtype, sin.dtype} == {q.dtype}
        if not _recorded or not alike or more or named:
            return theirs(q, k, cos, sin, *more, **named)
        return steps.rotate(q, k, cos, sin)

    names = {**own.__globals__, _ROTATION: rotate}
    turning = types.FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    turning.__kwdefaults__ = own.__kwdefaults__
    by_torch = attention.config._attn_implementation == "sdpa"

    def forward(*positional: Any, **named: Any) -> Any:
        mask = named.get("attention_mask")
        if _recorded and by_torch and isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
            states = positional[0] if positional else named["hidden_states"]
            named["attention_mask"] = _recorded[-1].additive(mask, states.dtype)
        return turning(attention, *positional, **named)

    return forward
