"""Steering the slow and obvious way: plain transformers, unsharded, one uncached forward, hooks that know every position.

It shares no code with the package: positions, steps, decay and operators follow from the public interface's description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import reference as ref
import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Change:
    """One change at one layer: `amount(p)` is α at position p, None where nothing is changed.

    `limited` has the positions at which it was clipped.
    """

    site: str
    layer: int
    direction: torch.Tensor
    amount: Callable[[int], float | None]
    operator: str = "add"
    clip: float | None = None
    keep_norm: bool = False
    limited: list[int] = field(default_factory=list)

    def apply(self, states: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """The states `[1, index, d]` as they are after it."""
        changed = states.clone()
        unit = self.direction / self.direction.norm()
        for index in range(states.shape[1]):
            p = index - (prompt_length - 1)
            alpha = self.amount(p)
            if alpha is None:
                continue
            h = states[0, index]
            along = torch.dot(h, unit)
            change = {"add": alpha, "ablate": -float(along), "set": alpha - float(along)}[self.operator] * unit
            if self.clip is not None and change.norm() > self.clip * h.norm():
                change = change * (self.clip * h.norm() / change.norm())
                self.limited.append(p)
            after = h + change
            changed[0, index] = after * (h.norm() / after.norm()) if self.keep_norm else after
        return changed


@contextmanager
def steered(model: PreTrainedModel, changes: Sequence[Change], prompt_length: int) -> Iterator[None]:
    """The model with the changes hooked in, for uncached forwards over a whole sequence."""
    family = ref.family_of(model)
    blocks = attrgetter(family.layers)(model)
    handles = []
    for change in changes:
        handles.append(_hook(family, blocks[change.layer], change, prompt_length))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(family: ref.Family, block: Any, change: Change, prompt_length: int) -> Any:
    def before(module: Any, args: tuple, kwargs: dict) -> Any:
        if args:
            return (change.apply(args[0], prompt_length), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change.apply(kwargs["hidden_states"], prompt_length)}

    def after(module: Any, args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change.apply(output[0], prompt_length), *output[1:])
        return change.apply(output, prompt_length)

    if change.site in ("resid_pre", "post_ln"):
        module = block if change.site == "resid_pre" else attrgetter(family.mlp)(block)
        return module.register_forward_pre_hook(before, with_kwargs=True)
    module = block if change.site == "resid_post" else attrgetter(getattr(family, change.site))(block)
    return module.register_forward_hook(after)
