"""A model's memory on each rank, computed from its configuration alone: nothing is loaded.

The modules are built without storage (torch's "meta" device), so that every tensor has the shape transformers would give it.
They are split as AutoTP does: linear layers of the blocks by key/value heads or, if these do not divide the width (and always
in MLPs), by grains of 64. What a family's adjustments split instead is split as they do (:func:`.adjust.kept_shapes`).
Everything else, such as norms, embeddings and routers, is whole on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .adjust import kept_shapes
from .anatomy import Anatomy, anatomy_of, context_of, part
from .cache import room_for
from .checkpoint import dtypes_of, read_header, weight_files
from .generate import PREFILL_COLUMNS
from .head import shard_bounds
from .products import is_slow, linear_bytes

GRAIN = 64  # AutoTP's tp_grain_size
# Layers split by their inputs (their outputs are summed over the ranks); all others are split by their outputs.
_SUMMED = ("o_proj", "down_proj", "out_proj", "dense", "dense_4h_to_h", "fc2", "w2")


@dataclass(frozen=True)
class Facts:
    """A model's dimensions.

    Attributes:
        inner: width inside the MLP.
        heads, kv_heads, head_width: of attention.
        itemsize: bytes of one number.
        vocabulary: rows of the head.
        autotp: whether AutoTP divides the heads, not a family's own adjustment.
        has_sdpa: whether torch's scaled dot-product attention can be used; if not, all scores of a forward are held at once.
        kinds: number of kinds of layers by what they attend to (everything, a window), each with its own mask.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    itemsize: int
    dtype: str
    context: int
    softcapped: bool = False
    autotp: bool = True
    has_sdpa: bool = True
    kinds: int = 1

    @classmethod
    def of(cls, config: Any, dtype: str) -> Facts:
        """Read the dimensions from a transformers configuration."""
        anatomy = anatomy_of(config.model_type, config)
        config = config.get_text_config()
        heads, width = int(config.num_attention_heads), int(config.hidden_size)
        return cls(
            layers=int(config.num_hidden_layers),
            width=width,
            inner=int(getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * width),
            heads=heads,
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_width=int(getattr(config, "head_dim", None) or width // heads),
            vocabulary=int(config.vocab_size),
            itemsize=torch.empty(0, dtype=getattr(torch, dtype)).element_size(),
            dtype=dtype,
            context=context_of(config),
            softcapped=getattr(config, "final_logit_softcapping", None) is not None,
            autotp=anatomy.autotp,
            has_sdpa=anatomy.has_sdpa,
            kinds=len(set(getattr(config, "layer_types", None) or [""])),
        )


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's parameters on one rank.

    Attributes:
        split: this rank's part of what is split.
        whole: what every rank holds in full: embeddings, norms and routers.
        head: this rank's rows of the head; 0 if the head is tied to the embedding.
        routers: how much of ``whole`` is what chooses the experts.
    """

    split: int
    whole: int
    head: int
    routers: int = 0

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.split + self.whole + self.head


def share(total: int, ranks: int, rank: int, heads: int | None) -> int:
    """Return how much of a dimension one rank gets; ``heads`` if it is to be split by key/value heads."""
    if heads is not None and total % heads == 0:
        return total * (heads // ranks + (rank < heads % ranks)) // heads
    if total < GRAIN:
        return total // ranks + (rank < total % ranks)
    grains, rest = divmod(total, GRAIN)
    return (grains // ranks + (rank < grains % ranks)) * GRAIN + (rest if rank == ranks - 1 else 0)


def stored_dtypes(folder: Path) -> tuple[str, ...]:
    """Return the dtypes of the weights in a folder (:func:`.checkpoint.dtypes_of`), which need not all be there."""
    return dtypes_of(read_header(file) for file in weight_files(folder, some=True))


def skeleton(config: Any, dtype: str) -> Any:
    """Build the model's modules without storage."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def weights(model: Any, ranks: int) -> list[Weights]:
    """Return the bytes of a model's parameters on each rank.

    Args:
        model: a causal language model that is not split yet, with or without storage.
    """
    anatomy = anatomy_of(model.config.model_type, model.config)
    head = part(model, anatomy.head)
    embedding = part(model, anatomy.embedding)
    tied = head.weight is embedding.weight or bool(
        getattr(model.config, "tie_word_embeddings", False) and head.weight.shape == embedding.weight.shape
    )
    own_head = {} if tied else {id(p): p for p in head.parameters()}
    blocks = part(model, anatomy.blocks)
    unused = {id(p) for path in anatomy.unused for p in part(model, path).parameters()}
    kept = [_kept_bytes(anatomy, blocks, rank, ranks) for rank in range(ranks)]
    linears = {
        name: module
        for name, module in blocks.named_modules()
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in kept[0]
    }
    apart = {id(p) for module in (head, *linears.values()) for p in module.parameters()} | unused | kept[0].keys()
    whole = {id(p): p.nbytes for p in model.parameters() if id(p) not in apart}
    if tied:
        whole[id(embedding.weight)] = embedding.weight.nbytes
    routers = sum(p.nbytes for name, p in blocks.named_parameters() if _is_router(name) and id(p) in whole)
    kv_heads = Facts.of(model.config, "float32").kv_heads
    found = []
    for rank in range(ranks):
        split = sum(_linear_bytes(name, module, ranks, rank, kv_heads) for name, module in linears.items())
        split += sum(kept[rank].values())
        found.append(Weights(split, sum(whole.values()), _head_bytes(own_head, ranks, rank), routers))
    return found


def _kept_bytes(anatomy: Anatomy, blocks: Any, rank: int, ranks: int) -> dict[int, int]:
    """Return the bytes a rank keeps of each parameter that its family's adjustments split, by ``id`` of the parameter."""
    kept = {}
    for block in blocks:
        parameters = dict(block.named_parameters())
        for name, shape in kept_shapes(anatomy, block, rank, ranks).items():
            kept[id(parameters[name])] = math.prod(shape) * parameters[name].element_size()
    return kept


def _is_router(name: str) -> bool:
    return ".gate." in f".{name}." or ".router." in f".{name}."


def _linear_bytes(name: str, module: torch.nn.Linear, ranks: int, rank: int, kv_heads: int) -> int:
    """Return a linear layer's bytes on one rank; ``name`` begins with the block's number."""
    bias = 0 if module.bias is None else module.bias.nbytes
    if ranks == 1 or name.endswith("mlp.gate"):
        return module.weight.nbytes + bias
    last = name.rsplit(".", 1)[-1]
    in_mlp = "mlp" in ".".join(name.split(".")[-2:]) or last in ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
    heads = None if in_mlp else kv_heads
    item = module.weight.element_size()
    if last in _SUMMED:
        return module.out_features * share(module.in_features, ranks, rank, heads) * item + bias
    fused = 2 if last == "gate_up_proj" else 1  # two layers in one, each split on its own
    rows = fused * share(module.out_features // fused, ranks, rank, heads)
    return rows * module.in_features * item + bias * rows // max(1, module.out_features)


def _head_bytes(parameters: Mapping[int, torch.Tensor], ranks: int, rank: int) -> int:
    total = 0
    for parameter in parameters.values():
        bounds = shard_bounds(int(parameter.shape[0]), ranks)
        total += parameter.nbytes // max(1, int(parameter.shape[0])) * (bounds[rank + 1] - bounds[rank])
    return total


def kv_heads_of(facts: Facts, ranks: int, rank: int) -> int:
    """Return the number of key/value heads of one rank."""
    if facts.autotp:
        return share(facts.kv_heads, ranks, rank, facts.kv_heads)
    bounds = shard_bounds(facts.kv_heads, ranks)
    return bounds[rank + 1] - bounds[rank]


def cache_bytes(facts: Facts, ranks: int, rank: int, columns: int, batch: int) -> int:
    """Return the bytes of keys and values of ``columns`` columns on one rank: its own key/value heads' in every layer."""
    heads = kv_heads_of(facts, ranks, rank) * facts.head_width
    return 2 * facts.layers * batch * room_for(columns) * heads * facts.itemsize


def forward_bytes(facts: Facts, ranks: int, columns: int, batch: int, device: str) -> int:
    """Estimate the peak memory in bytes of a forward over ``columns`` columns on one rank, besides weights and cache.

    It is the residual stream and norms, a mask for every kind of layer, and the larger of an MLP's inner states and attention
    in the last chunk: keys and values repeated for every query head and, without torch's scaled dot-product attention, all
    scores in the model's dtype and in float32. A CPU that is slow at 16-bit products converts a part of them.

    Args:
        device: "cpu" or "cuda".
    """
    length = min(columns, PREFILL_COLUMNS)
    inner = max(share(facts.inner, ranks, rank, None) for rank in range(ranks))
    heads = max(kv_heads_of(facts, ranks, rank) for rank in range(ranks)) * facts.heads // facts.kv_heads
    masks = length * columns * (1 + facts.itemsize) * facts.kinds if columns > length or batch > 1 or facts.kinds > 1 else 0
    repeated = 2 * heads * columns * facts.head_width * facts.itemsize if facts.heads > facts.kv_heads else 0
    scores = 0 if facts.has_sdpa else heads * length * columns * (4 + facts.itemsize)
    within_mlp = 3 * length * inner * facts.itemsize
    converts = is_slow(torch.device(device), getattr(torch, facts.dtype))
    converted = linear_bytes(batch * length, facts.width, max(inner, facts.width)) if converts else 0
    return batch * (4 * length * facts.width * facts.itemsize + masks + max(within_mlp, repeated + scores)) + converted
