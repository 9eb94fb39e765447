"""From captured states to scores: the lens, the norm, and the rows that states are projected onto.

Every lens has the same three steps: a state may be translated, is normalised, and is multiplied with rows that are split over
the ranks. The logit lens translates nothing and its rows are the vocabulary's; a tuned lens translates; a basis has its own
rows. What follows (candidates, sums, their combination) is the same for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F

from ..model.head import HeadShard, shard_bounds
from ..model.load import Loaded
from ..model.sites import Key
from ..ranks.rank import Rank
from ..ranks.store import Slot
from .basis import Basis
from .capture import Trajectories
from .norms import take_apart
from .translators import TunedLens, translator_of

NORMS = ("own", "frozen", "none")
COMPONENTS = ("attn_out", "mlp_out")
"""Sites of what is added to the residual stream, as opposed to the stream itself."""

# A rank without any of a basis's directions holds one row instead, whose logit is so low that it never counts. (Not −∞:
# differences of infinities are NaN.)
_NOTHING = -1e30


@dataclass(frozen=True)
class Look:
    """The lens options of a run; small, and the same on every rank.

    Attributes:
        lens: digest of the tuned lens or basis, which is sent separately; "" for the logit lens.
        name: the lens's name in results.
        directions: number of a basis's directions.
        norm: "own": divide each state by its own scale, as the model does with its last. "frozen": by the scale of the final
            residual stream at the same position. "none": do not normalise.
        track: tokens (or directions) to follow through all cells.
        track_first: the most tokens per position to follow of those ranked first in any layer; 0 for none.
    """

    lens: str = ""
    kind: Literal["logit", "tuned", "basis"] = "logit"
    name: str = ""
    directions: int = 0
    norm: str = "own"
    track: tuple[int, ...] = ()
    track_first: int = 0


PLAIN = Look()
"""The logit lens, following nothing."""

Held = dict[int, tuple[torch.Tensor, torch.Tensor]] | HeadShard
"""What a rank holds of a lens: weight and bias of translators by index, or rows of a basis."""
LENS = Slot[tuple[tuple[str, tuple[Key, ...]], Held]]("lens")
"""This rank's part of the newest run's lens, after what it depends on: the lens, and the states that are translated."""
GIVEN = Slot[TunedLens | Basis | None]("given lens")
"""On rank 0, the whole lens of the run that begins, None for the logit lens."""


class Projector:
    """The lens of one run on one rank.

    Attributes:
        look: the lens options of the run.
        head: this rank's rows, of the vocabulary or of the basis.
        size: number of rows on all ranks.
        has_targets: whether the rows are tokens, so that a next token has a rank among them.
    """

    def __init__(self, loaded: Loaded, look: Look, held: Held | None) -> None:
        self.look = look
        self._norm = loaded.norm
        self._layers = loaded.layers
        self._output: Key = ("resid_post", loaded.layers - 1)
        self._translators = held if isinstance(held, dict) else {}
        self.head = held if isinstance(held, HeadShard) else loaded.head
        self.size = look.directions or loaded.vocabulary
        self.has_targets = look.kind != "basis"
        # A component adds to the logits; constants and the soft-cap belong to the whole stream.
        bare = self.head.softcap is None and (self.head.bias is None or not self.has_targets)
        self._bare = self.head if bare else replace(self.head, bias=None, softcap=None)
        self._frozen = take_apart(loaded.norm, loaded.width, loaded.device, loaded.dtype) if look.norm == "frozen" else None

    @property
    def output_is_a_cell(self) -> bool:
        """Whether the lens reads the last layer's output as the model itself does, so that this cell is the model's output."""
        return self.look.kind != "tuned" and self.look.norm != "frozen"

    def rows_of_ranks(self, ranks: int) -> list[int]:
        """Return how many rows each rank holds."""
        return [max(1, end - begin) for begin, end in itertools.pairwise(shard_bounds(self.size, ranks))]

    def translated(self, key: Key, states: torch.Tensor) -> torch.Tensor:
        """Apply a tuned lens's map to states of a (site, layer) this rank keeps: ``[rows, d]`` → ``[rows, d]``, same dtype."""
        index = translator_of(*key, self._layers)
        if self.look.kind != "tuned" or index is None:
            return states
        weight, bias = self._translators[index]
        stream = states.float()
        return (stream + F.linear(stream, weight, bias)).to(states.dtype)

    def output(self, final: torch.Tensor) -> torch.Tensor:
        """Return the model's own scores, ``[positions, rows]``, from the last layer's output ``[positions, d]``."""
        return self.head.logits(final if self.look.norm == "none" else self._norm(final))

    def logits(self, keys: Sequence[Key], states: torch.Tensor, final: torch.Tensor | None) -> torch.Tensor:
        """Return this rank's scores of states ``[keys, positions, d]``: ``[keys · positions, rows]``, float32.

        Args:
            final: the last layer's output at the same positions, ``[positions, d]``, which gives a frozen norm its scale.
        """
        width = states.shape[-1]
        if self.look.norm == "none":
            return self.head.logits(states.reshape(-1, width))
        if self._frozen is None or final is None:
            return self.head.logits(self._norm(states).reshape(-1, width))
        divided = self._frozen.divided(states, self._frozen.scale(final))  # [keys, positions, d]
        component = torch.tensor([site in COMPONENTS for site, _ in keys], device=states.device)
        stream = self._frozen.add_bias(divided)
        if self._output in keys:  # by the module itself, which rounds to the model's dtype
            stream[keys.index(self._output)] = self._norm(final)
        scores = divided.new_empty((len(keys), states.shape[1], self.head.rows))
        scores[component] = self._bare.logits(divided[component].reshape(-1, width)).view(-1, *scores.shape[1:])
        scores[~component] = self.head.logits(stream[~component].reshape(-1, width)).view(-1, *scores.shape[1:])
        return scores.flatten(0, 1)


def projector_for(rank: Rank, loaded: Loaded, look: Look, trajectories: Trajectories) -> Projector:
    """Return the run's projector on this rank; distribute the lens first if the ranks do not hold it yet. Collective.

    Rank 0 has the lens itself in :data:`GIVEN`. A rank takes those translators of a tuned lens that its states
    need, or its share of a basis's rows, so lenses are split over the ranks as captured states and the vocabulary are.
    """
    if look.kind == "logit":
        rank.store.drop(LENS)  # free the lens of an earlier run
        return Projector(loaded, look, None)
    signature = (look.lens, tuple(trajectories.keys) if look.kind == "tuned" else ())
    kept = rank.store.get(LENS)
    here = torch.tensor(int(kept is not None and kept[0] == signature), device=loaded.device)
    if not int(rank.all_reduce(here, "min")):  # after a failed distribution a rank may lack what others have
        rank.store.drop(LENS)
        rank.store[LENS] = (signature, _hand_out(rank, loaded, look, trajectories))
    return Projector(loaded, look, rank.store[LENS][1])


def bytes_held(rank: Rank) -> int:
    """Return the bytes of what a rank holds of a lens."""
    if (kept := rank.store.get(LENS)) is None:
        return 0
    held = kept[1]
    if isinstance(held, HeadShard):
        return int(held.weight.nbytes)
    return sum(int(tensor.nbytes) for translator in held.values() for tensor in translator)


def bytes_needed(keys: Sequence[Key], layers: int, width: int, ranks: int, tuned: bool, directions: int) -> int:
    """Return the bytes of a tuned lens or basis, in float32, on a rank that keeps states of these (site, layer) pairs."""
    if directions:
        return -(-directions // ranks) * width * 4
    if not tuned:
        return 0
    translators = {translator_of(site, layer, layers) for site, layer in keys} - {None}
    return len(translators) * (width + 1) * width * 4


def _hand_out(rank: Rank, loaded: Loaded, look: Look, trajectories: Trajectories) -> Held:
    """Return this rank's part of the lens that rank 0 has. Collective."""
    given = rank.store.get(GIVEN)
    if look.kind == "basis":
        return _hand_out_rows(rank, loaded, look, given if isinstance(given, Basis) else None)
    return _hand_out_translators(rank, loaded, given if isinstance(given, TunedLens) else None, trajectories)


def _hand_out_translators(
    rank: Rank, loaded: Loaded, given: TunedLens | None, trajectories: Trajectories
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Return the translators of this rank's states, by index. Collective."""
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
    """Return this rank's rows of the basis. Collective."""
    bounds = shard_bounds(look.directions, rank.size)
    mine, bias = None, None
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        rows = _from_rank_0(rank, loaded, None if given is None else given.matrix[first:end], (end - first, loaded.width))
        if number == rank.rank:
            mine = rows
    if mine is None or not len(mine):
        mine = torch.zeros((1, loaded.width), dtype=torch.float32, device=loaded.device)
        bias = torch.full((1,), _NOTHING, dtype=torch.float32, device=loaded.device)
    return HeadShard(mine, bias, bounds[rank.rank])


def _from_rank_0(rank: Rank, loaded: Loaded, values: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    """Return rank 0's values on every rank, float32 on the model's device. Collective."""
    # NCCL takes contiguous tensors alone, and values may be a transposed view.
    sent = torch.zeros(shape, dtype=torch.float32, device=loaded.device)
    return rank.all_reduce(sent if values is None else sent.copy_(values))
