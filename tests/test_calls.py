"""Shortened calls: the same results, whoever has hooks is heard, and nothing is left of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import probes
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoModelForCausalLM, AutoTokenizer

import lens_magic as lens
from lens_magic.model.calls import short_calls

Checkpoints = Callable[[str], Path]


class Inner(nn.Module):
    grows = False

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)
        self.register_buffer("shift", torch.ones(4))
        self.register_parameter("absent", None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        assert self.absent is None
        if self.grows:
            self.register_buffer("shift", self.shift + 1)  # as rotary embeddings do when a text outgrows them
        return self.linear(states) + self.shift


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Inner() for _ in range(3))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:2]:
            states = layer(states)
        return states


def lent(model: nn.Module) -> int:
    return sum(len(probes.shortened(module)) for module in model.modules())


@torch.inference_mode()
def test_the_same_objects_are_found_and_called() -> None:
    model, states = Outer(), torch.randn(2, 4)
    model.layers[0].grows = True
    expected = copy.deepcopy(model)(states)
    with short_calls(model):
        first = model.layers[0]
        assert vars(first)["linear"] is first._modules["linear"]
        assert vars(first.linear)["weight"] is first.linear._parameters["weight"]
        assert torch.equal(model(states), expected)
        assert list(model.state_dict()) == list(Outer().state_dict())
    assert lent(model) == 0


def test_nothing_is_left_after_an_error() -> None:
    model = Outer()
    with pytest.raises(ZeroDivisionError), short_calls(model):
        raise ZeroDivisionError
    assert lent(model) == 0


def test_what_is_replaced_meanwhile_stays_replaced() -> None:
    model, other = Outer(), nn.Linear(4, 4, bias=False)
    with short_calls(model), torch.inference_mode():
        model.layers[0].linear = other
        changed = model(torch.ones(1, 4))
    assert model.layers[0].linear is other
    assert torch.equal(changed, model(torch.ones(1, 4)))


def test_parameters_that_come_and_go_are_looked_up() -> None:
    """As where accelerate keeps them elsewhere: it puts them into the module's table before each call."""
    linear = nn.Linear(2, 2, bias=False)
    inner, linear._hf_hook = linear.forward, object()

    def fetching(states: torch.Tensor) -> torch.Tensor:
        linear._parameters["weight"] = nn.Parameter(torch.eye(2))
        return inner(states)

    linear.forward = fetching
    linear._parameters["weight"] = nn.Parameter(torch.empty(2, 2, device="meta"))
    with short_calls(nn.Sequential(linear)), torch.no_grad():
        assert linear(torch.ones(1, 2)).tolist() == [[1, 1]]


def test_hooks_are_heard() -> None:
    model, heard = Outer(), []
    model.layers[0].register_forward_hook(lambda *_: heard.append("hook"))
    model.layers[1].linear.register_forward_pre_hook(lambda *_: heard.append("pre-hook"))
    with short_calls(model):
        model(torch.ones(1, 4))
    assert heard == ["hook", "pre-hook"]
    everywhere = register_module_forward_hook(lambda module, *_: heard.append(type(module).__name__))
    try:
        with short_calls(model):
            model(torch.ones(1, 4))
    finally:
        everywhere.remove()
    assert heard[2:] == ["Linear", "Inner", "hook", "pre-hook", "Linear", "Inner", "Outer"]


def test_a_call_of_ones_own_is_made() -> None:
    """Compiled modules, and classes that call in a way of their own, are called as they are."""

    class Doubling(nn.Linear):
        def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super()._call_impl(*args, **kwargs)

        __call__ = _call_impl

    own, compiled = Doubling(4, 4), nn.Linear(4, 4)
    compiled._compiled_call_impl = lambda states: states * 0
    model, states = nn.Sequential(own, compiled), torch.ones(1, 4)
    with short_calls(model):
        assert torch.equal(own(states), 2 * own.forward(states))
        assert torch.equal(compiled(states), torch.zeros(1, 4))
    assert compiled._compiled_call_impl is not None


def test_hooks_on_a_model_in_memory_hear_every_token(checkpoints: Checkpoints) -> None:
    folder = str(checkpoints("llama-gqa"))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    lengths: list[int] = []
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    lens.attach(model, AutoTokenizer.from_pretrained(folder))
    run = lens.run("To be", 4, ignore_eos=True)
    assert lengths == [len(run.prompt_ids), 1, 1, 1]
    assert lent(model) == 0
