"""The one place where activations are read or changed while a model runs.

Capturing and steering are both visitors: functions attached to a (site, layer) that see the hidden states pass. Nothing of
them is left when the ``with`` block ends, however it ends.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .anatomy import Anatomy, Tap, part
from .fused import fused
from .products import fast
from .standing_in import Forward, standing_in

Key = tuple[str, int]
"""(site, layer)"""


@dataclass
class Window:
    """The columns of a left-padded batch that the running forward covers, and their positions.

    Attributes:
        start, length: columns ``start`` … ``start + length − 1``.
        last: the column of the prompts' last token; column c is position p = c − last in every sequence.
        padding: for each sequence, the number of padded columns on its left.
    """

    start: int = 0
    length: int = 0
    last: int = 0
    padding: tuple[int, ...] = (0,)

    @property
    def positions(self) -> range:
        """The positions p of the covered columns."""
        return range(self.start - self.last, self.start + self.length - self.last)


Visit = Callable[[torch.Tensor, Window], "torch.Tensor | None"]
"""Called with the hidden states ``[batch, length, d]`` and their window; returns the states to replace them, or None.

In a decode step (length 1) a visit may only use tensors whose addresses stay the same from step to step, and nothing of the
window but its length, because the step can be recorded once and replayed (:mod:`.graph`). ``prepare`` writes what changes to
those tensors, and ``finish`` reads it from them.
"""


class Visitor:
    """Something that looks at activations, or changes them.

    Attributes:
        changes: whether it does the latter.
    """

    changes = False

    def visits(self) -> Mapping[Key, Visit]:
        """Return the visits to attach on this rank, by (site, layer)."""
        raise NotImplementedError

    def prepare(self, window: Window) -> None:
        """Called before each forward, outside of it; does nothing by default."""

    def finish(self, window: Window) -> None:
        """Called after each forward, outside of it; does nothing by default."""


@contextlib.contextmanager
def attached(model: Any, anatomy: Anatomy, visitors: Sequence[Visitor], window: Window) -> Iterator[None]:
    """Attach visitors to a model for the duration of a ``with`` block, in which it is in evaluation mode.

    Args:
        visitors: if several visit the same site and layer, each sees the states as the previous one left them.
        window: updated before each forward by the code that runs it.
    """
    blocks = part(model, anatomy.blocks)
    with contextlib.ExitStack() as attachments:
        attachments.enter_context(_evaluating(model))
        embedding = part(model, anatomy.embedding).weight
        attachments.enter_context(fused(model, embedding.device, embedding.dtype))
        attachments.enter_context(fast(model, embedding.device, embedding.dtype))
        for (site, layer), visit in _chained(visitors).items():
            tap = anatomy.sites[site]
            attachments.enter_context(_attached_to(part(blocks[layer], tap.path), tap, visit, window))
        yield


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode within the ``with`` block: in training mode it would apply dropout, or use no cache."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _chained(visitors: Sequence[Visitor]) -> dict[Key, Visit]:
    by_key: dict[Key, list[Visit]] = {}
    for visitor in visitors:
        for key, visit in visitor.visits().items():
            by_key.setdefault(key, []).append(visit)
    return {key: visits[0] if len(visits) == 1 else _one_after_another(visits) for key, visits in by_key.items()}


def _one_after_another(visits: Sequence[Visit]) -> Visit:
    def visit(states: torch.Tensor, window: Window) -> torch.Tensor | None:
        changed: torch.Tensor | None = None
        for each in visits:
            left = each(states if changed is None else changed, window)
            changed = changed if left is None else left
        return changed

    return visit


def _attached_to(module: torch.nn.Module, tap: Tap, visit: Visit, window: Window) -> contextlib.AbstractContextManager[Any]:
    """Attach a visit to a module for the duration of a ``with`` block.

    A module with hooks of somebody else's gets ours after them, so that their changes are seen. On any other its ``forward``
    is replaced: a hook would send every call through torch's slow path, which costs ten times what looking itself does.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        if tap.side == "output":
            seen = _look_after(lambda output: output, visit, window)
            return module.register_forward_hook(lambda _, __, output: seen(output))
        given = _look_before(lambda *positional, **named: (positional, named), visit, window)
        return module.register_forward_pre_hook(lambda _, positional, named: given(*positional, **named), with_kwargs=True)
    looking = _look_after if tap.side == "output" else _look_before
    return standing_in({module: functools.wraps(module.forward)(looking(module.forward, visit, window))})


# These run for every site and layer, at every token that is not replayed.


def _look_before(inner: Forward, visit: Visit, window: Window) -> Forward:
    """Wrap a forward so that a visit sees, and can replace, the states it is given, its first argument."""

    def look_then_forward(*positional: Any, **named: Any) -> Any:
        states = positional[0] if positional else named["hidden_states"]
        changed = visit(states, window) if states.ndim == 3 else _visit_one_row(visit, states, window)
        if changed is None:
            return inner(*positional, **named)
        if positional:
            return inner(changed, *positional[1:], **named)
        return inner(**{**named, "hidden_states": changed})

    return look_then_forward


def _look_after(inner: Forward, visit: Visit, window: Window) -> Forward:
    """Wrap a forward so that a visit sees, and can replace, the states it returns; attention returns (states, weights)."""

    def forward_then_look(*positional: Any, **named: Any) -> Any:
        output = inner(*positional, **named)
        states = output[0] if isinstance(output, tuple) else output
        changed = visit(states, window) if states.ndim == 3 else _visit_one_row(visit, states, window)
        if changed is None:
            return output
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return forward_then_look


def _visit_one_row(visit: Visit, states: torch.Tensor, window: Window) -> torch.Tensor | None:
    """Call a visit with ``[batch, length, d]`` if a family's block has put all sequences' tokens into one row."""
    changed = visit(states.view(-1, window.length, states.shape[-1]), window)
    return None if changed is None else changed.reshape(states.shape)
