"""Functions that finish what DeepSpeed's AutoTP leaves undone in some families' blocks; a family's row names them.

Each takes a block that AutoTP has split (or, if the row says ``autotp=False``, a whole one) and corrects this rank's share
of it. Every rank calls them for every block, in order; they may exchange numbers with the other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..ranks import collectives
from ..ranks.rank import Rank
from .anatomy import Anatomy
from .experts import inner_bounds, padded
from .head import shard_bounds


class Summed(nn.Module):
    """A module of which each rank computes a share: its output is the sum over the ranks, plus the bias."""

    def __init__(self, rank: Rank, share: nn.Module, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.rank = rank
        self.share = share
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, *inputs: Any) -> torch.Tensor:
        """The whole module's output, the same on every rank."""
        total = self.rank.all_reduce(self.share(*inputs))
        return total if self.bias is None else total + self.bias


class SplitRMSNorm(nn.Module):
    """RMS norm (Zhang & Sennrich 2019, arXiv:1910.07467) over a width that is split over the ranks.

    The ranks sum one number per token.
    """

    def __init__(self, rank: Rank, weight: torch.Tensor, width: int, epsilon: float) -> None:
        super().__init__()
        self.rank = rank
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.width = width
        self.epsilon = epsilon

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Normalise this rank's part ``[batch, length, part]``."""
        wide = states.float()
        squares = self.rank.all_reduce(wide.square().sum(-1, keepdim=True))
        return (self.weight * (wide * torch.rsqrt(squares / self.width + self.epsilon))).to(states.dtype)


class _LocalHeads:
    """A configuration for one layer, with this rank's number of query heads."""

    def __init__(self, config: Any, heads: int) -> None:
        self._config = config
        self.num_attention_heads = heads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def count_local_heads(rank: Rank, block: Any) -> None:
    """Give Phi-3's attention this rank's number of heads: it takes its queries' width from the whole model's configuration."""
    attention = block.self_attn
    attention.config = _LocalHeads(attention.config, attention.o_proj.weight.shape[1] // attention.head_dim)


def split_full_width_norms(rank: Rank, block: Any) -> None:
    """Split OLMo 2's norms of queries and keys, which run over all heads together, while a rank has some of them."""
    attention = block.self_attn
    for norm, projection in (("q_norm", attention.q_proj), ("k_norm", attention.k_proj)):
        whole = getattr(attention, norm)
        mine = projection.weight.shape[0]
        parts = rank.all_gather(torch.tensor([mine], device=collectives.device_for(rank)))[:, 0].tolist()
        begin = sum(parts[: rank.rank])
        weight = whole.weight[begin : begin + mine].clone()
        setattr(attention, norm, SplitRMSNorm(rank, weight, sum(parts), whole.variance_epsilon))


def sum_experts(rank: Rank, block: Any) -> None:
    """Sum the outputs of the ranks' slices of the experts (:mod:`.experts`); AutoTP would leave experts whole on every rank.

    All ranks choose the same experts, because the router sees the same states on each.
    """
    if hasattr(block.mlp, "experts"):  # otherwise a dense layer among sparse ones, which AutoTP has split
        block.mlp.experts = Summed(rank, block.mlp.experts)


def split_gpt2(rank: Rank, block: Any) -> None:
    """Split GPT-2, which AutoTP refuses: its layers hold weights transposed, and one holds queries, keys and values."""
    attention, mlp = block.attn, block.mlp
    width = attention.embed_dim
    heads = shard_bounds(attention.num_heads, rank.size)
    begin, end = (attention.head_dim * heads[rank.rank + step] for step in (0, 1))
    _keep_outputs(attention.c_attn, [slice(kind * width + begin, kind * width + end) for kind in range(3)])
    attention.c_proj = _inputs_kept(rank, attention.c_proj, slice(begin, end))
    attention.num_heads = heads[rank.rank + 1] - heads[rank.rank]
    attention.split_size = end - begin
    inner = inner_bounds(mlp.c_proj.nx, rank.size)
    mine = slice(inner[rank.rank], inner[rank.rank + 1])
    _keep_outputs(mlp.c_fc, [mine])
    mlp.c_proj = _inputs_kept(rank, mlp.c_proj, mine)


def _keep_outputs(layer: Any, kept: list[slice]) -> None:
    """Keep some outputs of a transposed linear layer (transformers' ``Conv1D``: weight ``[inputs, outputs]``)."""
    layer.weight = nn.Parameter(torch.cat([layer.weight[:, some] for some in kept], 1), requires_grad=False)
    layer.bias = nn.Parameter(torch.cat([layer.bias[some] for some in kept]), requires_grad=False)
    layer.nf = layer.weight.shape[1]


def _inputs_kept(rank: Rank, layer: Any, kept: slice) -> Summed:
    """Keep some inputs of a transposed linear layer; the ranks' outputs add up to the whole layer's."""
    bias = layer.bias.clone()
    layer.weight = nn.Parameter(layer.weight[kept].clone(), requires_grad=False)
    del layer.bias  # the layer still needs one, so it gets zeros; the real one is added once, to the sum
    layer.register_buffer("bias", torch.zeros_like(bias), persistent=False)
    layer.nx = layer.weight.shape[0]
    return Summed(rank, layer, bias)


ADJUSTMENTS: Mapping[str, Callable[[Rank, Any], None]] = {
    "count_local_heads": count_local_heads,
    "split_full_width_norms": split_full_width_norms,
    "sum_experts": sum_experts,
    "split_gpt2": split_gpt2,
}
"""The adjustments, by the name that a family's row gives."""


# --- shapes after splitting, for `lens-magic plan` -------------------------------------------------------------------------


def kept_shapes(anatomy: Anatomy, block: Any, rank: int, ranks: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a rank keeps of those parameters of a block that an adjustment splits differently from AutoTP.

    Args:
        block: the block before it is split, with or without storage (torch's "meta" device).

    Returns:
        Shapes by the parameter's name in the unsplit block; empty on a single rank.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name in anatomy.adjust if ranks > 1 else ():
        if name in _KEPT:
            shapes |= _KEPT[name](block, rank, ranks)
    return shapes


def _kept_of_norms(block: Any, rank: int, ranks: int) -> dict[str, tuple[int, ...]]:
    attention = block.self_attn
    groups = attention.config.num_key_value_heads
    mine = groups // ranks + (rank < groups % ranks)  # as AutoTP splits the projections
    return {
        f"self_attn.{norm}.weight": (getattr(attention, norm).weight.shape[0] // groups * mine,)
        for norm in ("q_norm", "k_norm")
    }


def _kept_of_experts(block: Any, rank: int, ranks: int) -> dict[str, tuple[int, ...]]:
    experts = getattr(block.mlp, "experts", None)
    if experts is None:
        return {}
    number, width, inner = experts.down_proj.shape
    bounds = inner_bounds(inner, ranks)
    mine = padded(bounds[rank + 1] - bounds[rank])
    return {"mlp.experts.gate_up_proj": (number, 2 * mine, width), "mlp.experts.down_proj": (number, width, mine)}


def _kept_of_gpt2(block: Any, rank: int, ranks: int) -> dict[str, tuple[int, ...]]:
    attention, width = block.attn, block.attn.embed_dim
    heads, inner = shard_bounds(attention.num_heads, ranks), inner_bounds(block.mlp.c_proj.nx, ranks)
    queries, mine = attention.head_dim * (heads[rank + 1] - heads[rank]), inner[rank + 1] - inner[rank]
    return {
        "attn.c_attn.weight": (width, 3 * queries),
        "attn.c_attn.bias": (3 * queries,),
        "attn.c_proj.weight": (queries, width),
        "mlp.c_fc.weight": (width, mine),
        "mlp.c_fc.bias": (mine,),
        "mlp.c_proj.weight": (mine, width),
    }


_KEPT: Mapping[str, Callable[[Any, int, int], dict[str, tuple[int, ...]]]] = {
    "split_full_width_norms": _kept_of_norms,
    "sum_experts": _kept_of_experts,
    "split_gpt2": _kept_of_gpt2,
}
