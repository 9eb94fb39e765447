"""From captured states to scores: through which lens, under which norm, onto which rows.

Every lens is the same three steps: a state may be translated, is normalised, and is multiplied with rows that the ranks share
between them. The logit lens translates nothing and its rows are the vocabulary's; a tuned lens translates; a basis has
rows of its own. What follows (candidates, sums, their combination) knows nothing of the difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from ..model.head import HeadShard, shard_bounds
from ..model.load import Loaded
from ..model.sites import Key
from ..ranks.rank import Rank
from .basis import Basis
from .capture import Trajectories
from .norms import take_apart
from .translators import TunedLens, translator_of

NORMS = ("own", "frozen", "none")
COMPONENTS = ("attn_out", "mlp_out")
"""What is added to the residual stream, as opposed to the stream itself."""

# A rank that no direction fell to holds one row in its place, whose logit is so low that it counts for nothing. (Not
# −∞: differences of infinities are no numbers.)
_NOTHING = -1e30


@dataclass(frozen=True)
class Look:
    """How a run is looked at: the same on every rank, and small.

    Attributes:
        lens: digest of the tuned lens or basis, which travels on its own; "" for the logit lens.
        kind: "logit", "tuned" or "basis".
        name: what results call it.
        directions: how many a basis has.
        norm: "own": each state by its own scale, as the model does with its last. "frozen": by the scale of the final
            residual stream at the same position. "none": not at all.
        track: tokens (or directions) followed through all cells.
        track_first: at most so many tokens a position that are ranked first in any layer are followed; 0 for none.
    """

    lens: str = ""
    kind: str = "logit"
    name: str = ""
    directions: int = 0
    norm: str = "own"
    track: tuple[int, ...] = ()
    track_first: int = 0


PLAIN = Look()
"""The logit lens, following nothing."""


class Projector:
    """The lens of one run on one rank.

    Attributes:
        look: what was asked for.
        head: this rank's rows: of the vocabulary, or of the basis.
        size: rows of all ranks.
        has_targets: whether the rows are tokens, so that a next token has a rank among them.
    """

    def __init__(self, loaded: Loaded, look: Look, held: Any) -> None:
        self.look = look
        self._norm = loaded.norm
        self._layers = loaded.layers
        self._output: Key = ("resid_post", loaded.layers - 1)
        self._translators: dict[int, tuple[torch.Tensor, torch.Tensor]] = held if look.kind == "tuned" else {}
        self.head: HeadShard = held if look.kind == "basis" else loaded.head
        self.size = look.directions or loaded.vocabulary
        self.has_targets = look.kind != "basis"
        # A component adds to the logits; constants and the soft-cap belong to the whole stream.
        bare = self.head.softcap is None and (self.head.bias is None or not self.has_targets)
        self._bare = self.head if bare else replace(self.head, bias=None, softcap=None)
        self._frozen = take_apart(loaded.norm, loaded.width, loaded.device, loaded.dtype) if look.norm == "frozen" else None

    @property
    def output_is_a_cell(self) -> bool:
        """Whether the last layer's output is looked at as the model itself does, so that this cell is its own output."""
        return self.look.kind != "tuned" and self.look.norm != "frozen"

    def rows_of_ranks(self, ranks: int) -> list[int]:
        """How many rows each rank holds."""
        return [max(1, end - begin) for begin, end in itertools.pairwise(shard_bounds(self.size, ranks))]

    def translated(self, key: Key, states: torch.Tensor) -> torch.Tensor:
        """A tuned lens's map of a (site, layer) that this rank keeps: ``[rows, d]`` → ``[rows, d]``, in their dtype."""
        index = translator_of(*key, self._layers)
        if self.look.kind != "tuned" or index is None:
            return states
        weight, bias = self._translators[index]
        stream = states.float()
        return (stream + F.linear(stream, weight, bias)).to(states.dtype)

    def output(self, final: torch.Tensor) -> torch.Tensor:
        """The model's own scores, from the last layer's output ``[positions, d]``: ``[positions, rows]``."""
        return self.head.logits(final if self.look.norm == "none" else self._norm(final))

    def logits(self, keys: Sequence[Key], states: torch.Tensor, final: torch.Tensor | None) -> torch.Tensor:
        """This rank's scores of ``[keys, positions, d]`` states: ``[keys · positions, rows]``, float32.

        Args:
            final: the last layer's output at the same positions, ``[positions, d]``: the scale of a frozen norm.
        """
        width = states.shape[-1]
        if self.look.norm == "none":
            return self.head.logits(states.reshape(-1, width))
        if self._frozen is None or final is None:
            return self.head.logits(self._norm(states).reshape(-1, width))
        divided = self._frozen.divided(states, self._frozen.scale(final))  # [keys, positions, d]
        component = torch.tensor([site in COMPONENTS for site, _ in keys], device=states.device)
        stream = self._frozen.add_bias(divided)
        if self._output in keys:  # the module itself rounds to the model's type
            stream[keys.index(self._output)] = self._norm(final)
        scores = divided.new_empty((len(keys), states.shape[1], self.head.rows))
        scores[component] = self._bare.logits(divided[component].reshape(-1, width)).view(-1, *scores.shape[1:])
        scores[~component] = self.head.logits(stream[~component].reshape(-1, width)).view(-1, *scores.shape[1:])
        return scores.flatten(0, 1)


def projector_for(rank: Rank, loaded: Loaded, look: Look, trajectories: Trajectories) -> Projector:
    """The run's projector on this rank; a lens that the ranks do not hold yet is handed out. Collective.

    Rank 0 has the lens itself in its store as ``given_lens``. Of a tuned lens a rank takes the translators of the states it
    keeps, of a basis its share of the rows: either is spread over the ranks as captured states and vocabulary are.
    """
    if look.kind == "logit":
        rank.store.pop("lens", None)  # what a run before was seen through would take up memory for nothing
        return Projector(loaded, look, None)
    signature = (look.lens, tuple(trajectories.keys) if look.kind == "tuned" else ())
    kept = rank.store.get("lens")
    here = torch.tensor(int(kept is not None and kept[0] == signature), device=loaded.device)
    if not int(rank.all_reduce(here, "min")):  # a rank that failed while lenses were handed out may lack what others have
        rank.store.pop("lens", None)
        given = rank.store.get("given_lens")
        held = (
            _hand_out_rows(rank, loaded, look, given) if look.kind == "basis" else _hand_out(rank, loaded, given, trajectories)
        )
        rank.store["lens"] = (signature, held)
    return Projector(loaded, look, rank.store["lens"][1])


def bytes_held(held: Any) -> int:
    """Of what a rank holds of a lens: translators by index, or rows of a basis."""
    if isinstance(held, HeadShard):
        return int(held.weight.nbytes)
    return sum(int(tensor.nbytes) for translator in held.values() for tensor in translator)


def _hand_out(rank: Rank, loaded: Loaded, given: TunedLens | None, trajectories: Trajectories) -> dict[int, Any]:
    """The translators of this rank's states, by index."""
    wanted: dict[int, set[int]] = {}
    for key in trajectories.plan.keys:
        index = translator_of(*key, loaded.layers)
        if index is not None:
            wanted.setdefault(index, set()).add(trajectories.owner(key))
    held = {}
    for index in sorted(wanted):
        weight = _from_rank_0(rank, loaded, None if given is None else given.weights[index], (loaded.width, loaded.width))
        bias = _from_rank_0(rank, loaded, None if given is None else given.biases[index], (loaded.width,))
        if rank.rank in wanted[index]:
            held[index] = (weight, bias)
    return held


def _hand_out_rows(rank: Rank, loaded: Loaded, look: Look, given: Basis | None) -> HeadShard:
    """This rank's rows of the basis."""
    bounds = shard_bounds(look.directions, rank.size)
    mine, bias = None, None
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        rows = _from_rank_0(rank, loaded, None if given is None else given.matrix[first:end], (end - first, loaded.width))
        if number == rank.rank:
            mine = rows
    if mine is None or not len(mine):
        mine = torch.zeros((1, loaded.width), device=loaded.device)
        bias = torch.full((1,), _NOTHING, device=loaded.device)
    return HeadShard(mine, bias, bounds[rank.rank], look.directions)


def _from_rank_0(rank: Rank, loaded: Loaded, values: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    """Rank 0's values on every rank, float32 on the model's device. Collective."""
    sent = torch.zeros(shape, device=loaded.device) if values is None else values.to(loaded.device, torch.float32, copy=True)
    return rank.all_reduce(sent)
