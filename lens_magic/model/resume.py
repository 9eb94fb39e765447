"""Running only the part of a model that is needed: from a site in its middle on, and at its end for the last token alone.

A change at a site of layer l leaves everything before it as it was, so forwards that differ only from there on need not run
it again. Skipped modules return kept states; everything else (masks, rotary tables, the blocks from l on, the norm) is the
model's own, so nothing here is specific to a family.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..ranks.rank import Rank
from .anatomy import part
from .batch import Batch, read_forward
from .load import Loaded
from .sites import Key, Visit, Visitor, Window
from .standing_in import Forward, standing_in


class KeptStates(Visitor):
    """Keeps the states at chosen sites.

    Attributes:
        states: ``{(site, layer): [batch, columns, d]}`` of the last forward.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = list(keys)
        self.states: dict[Key, torch.Tensor] = {}

    def visits(self) -> Mapping[Key, Visit]:
        """Return one visit per site."""
        return {key: self._keeper(key) for key in self.keys}

    def _keeper(self, key: Key) -> Visit:
        def keep(states: torch.Tensor, window: Window) -> None:
            self.states[key] = states

        return keep


class Resumption:
    """Forwards that start where a change at a site is made.

    For ``resid_pre`` they skip the blocks before the layer, for ``resid_post`` also its own block, and for the sites between
    also its attention. (For ``mlp_out`` the MLP runs again, as some families have no module for it.)

    Args:
        site: where changes will be made.
    """

    def __init__(self, loaded: Loaded, site: str) -> None:
        self.loaded, self.site = loaded, site
        self.blocks = list(part(loaded.model, loaded.anatomy.blocks))
        self._attention_gives_more = False

    def keys(self, layer: int) -> list[Key]:
        """Return the sites whose states must be kept to resume at a layer; none if nothing would be saved."""
        if self.site == "resid_post":
            return [("resid_post", layer)]
        before: list[Key] = [("resid_pre", layer)] if layer else []  # block 0 gets its input from the embedding
        return before if self.site == "resid_pre" else [*before, ("attn_out", layer)]

    def works(self, rank: Rank, sequences: Sequence[Sequence[int]], layer: int) -> bool:
        """Find out by trying whether resuming at a layer gives what a whole forward gives, bit for bit. Collective.

        It does not if blocks return more than a tensor, or use states from before the previous block. In 16 bits a product's
        last digit may depend on the number of rows, which is the same in both forwards here, but not in a sweep.
        """
        kept = KeptStates(self.keys(layer))
        kinds: list[type] = []
        noted = {block: _noting(block.forward, kinds) for block in self.blocks[: layer + 1]}
        of_attention: list[type] = []
        attention = self._attention(layer)
        with standing_in({**noted, attention: _noting(attention.forward, of_attention)}):
            whole = read_forward(self.loaded, sequences, [kept])
        if any(not issubclass(kind, torch.Tensor) for kind in kinds):
            return False  # the model's structure, so the same on all ranks
        self._attention_gives_more = any(issubclass(kind, tuple) for kind in of_attention)
        with self.at(layer, kept):
            resumed = read_forward(self.loaded, sequences)
        same = torch.tensor([int(torch.equal(whole, resumed))], device=self.loaded.device)
        return bool(rank.all_reduce(same, "min"))

    @contextlib.contextmanager
    def at(self, layer: int, kept: KeptStates, rows: int = 1) -> Iterator[None]:
        """Start forwards within the ``with`` block at a layer; if nothing was kept for it they run everything.

        Args:
            kept: states of a forward over the same rows.
            rows: how often each row is repeated in these forwards; copies are adjacent.
        """
        states = {key: kept.states[key].repeat_interleave(rows, 0) for key in self.keys(layer) if key in kept.states}
        stand_ins: dict[Any, Forward] = {}
        for (site, _), handed_on in states.items():
            if site == "attn_out":
                given = (handed_on, None) if self._attention_gives_more else handed_on
                stand_ins[self._attention(layer)] = _handing_on(given)
            else:
                through = layer + 1 if site == "resid_post" else layer
                stand_ins |= {block: _handing_on(handed_on) for block in self.blocks[:through]}
        with standing_in(stand_ins):
            yield

    def _attention(self, layer: int) -> Any:
        return part(self.blocks[layer], self.loaded.anatomy.sites["attn_out"].path)


@contextlib.contextmanager
def last_tokens_alone(loaded: Loaded, batch: Batch) -> Iterator[None]:
    """Run the last block's MLP for each sequence's last token alone, in forwards over a batch within the ``with`` block.

    It is for batches of which only the last tokens are read: after the last attention no token depends on another.
    """
    block = list(part(loaded.model, loaded.anatomy.blocks))[-1]
    mlp = part(block, loaded.anatomy.sites["post_ln"].path)
    own = mlp.forward

    def forward(states: torch.Tensor, *more: Any, **named: Any) -> Any:
        if states.ndim != 3:  # a family that puts all sequences' tokens into one row
            return own(states, *more, **named)
        output = own(states[batch.ends][:, None], *more, **named)
        first, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        whole = first.new_zeros((*states.shape[:-1], first.shape[-1]))
        whole[batch.ends] = first[:, 0]
        return whole if rest is None else (whole, *rest)

    with standing_in({mlp: forward}):
        yield


def _handing_on(given: Any) -> Forward:
    return lambda *inputs, **named: given


def _noting(forward: Forward, kinds: list[type]) -> Forward:
    """Wrap a forward to note the type of what it returns."""

    def noting(*inputs: Any, **named: Any) -> Any:
        output = forward(*inputs, **named)
        kinds.append(type(output))
        return output

    return noting
