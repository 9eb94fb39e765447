"""The one place where activations are read or changed while a model runs.

Capturing and steering are both functions attached to a (site, layer); they see where in the sequence the running forward
stands, and nothing of them is left when the ``with`` block ends, however it ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .anatomy import Anatomy, part


@dataclass
class Window:
    """Which positions of the sequence the running forward covers: ``start`` … ``start + length − 1``."""

    start: int = 0
    length: int = 0


Visit = Callable[[torch.Tensor, Window], torch.Tensor | None]
"""Given the hidden states ``[batch, length, d]`` and where they stand; returns what replaces them, or None."""


@contextlib.contextmanager
def attached(model: Any, anatomy: Anatomy, visits: Mapping[tuple[str, int], Visit]) -> Iterator[Window]:
    """Attach functions to sites for the duration of a ``with`` block.

    Args:
        visits: by (site, layer).

    Yields:
        The window, which the decode loop moves along with every forward.
    """
    window = Window()
    blocks = part(model, anatomy.blocks)
    handles = []
    try:
        for (site, layer), visit in visits.items():
            tap = anatomy.sites[site]
            module = part(blocks[layer], tap.path)
            if tap.side == "input":
                handles.append(module.register_forward_pre_hook(_before(visit, window), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_after(visit, window)))
        yield window
    finally:
        for handle in handles:
            handle.remove()


def _before(visit: Visit, window: Window) -> Callable[..., Any]:
    def hook(module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if positional:
            changed = visit(positional[0], window)
            return None if changed is None else ((changed, *positional[1:]), named)
        changed = visit(named["hidden_states"], window)
        return None if changed is None else (positional, {**named, "hidden_states": changed})

    return hook


def _after(visit: Visit, window: Window) -> Callable[..., Any]:
    def hook(module: Any, inputs: Any, output: Any) -> Any:
        # Attention returns (states, weights), most blocks and MLPs the states alone.
        if isinstance(output, tuple):
            changed = visit(output[0], window)
            return None if changed is None else (changed, *output[1:])
        return visit(output, window)

    return hook
