"""Where a family of models keeps its blocks, norms and head, and where in a block the sites are.

A family is a row of data. Paths are attribute paths; a site is the input or the output of a module of the block.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import LensError

SITES = ("resid_pre", "attn_out", "post_ln", "mlp_out", "resid_post")
"""All sites of a block, in the order data passes them."""

DEFAULT_SITES = ("attn_out", "mlp_out", "resid_post")


@dataclass(frozen=True)
class Tap:
    """A point of a block: the first tensor a module receives, or the first it returns; path "" is the block itself."""

    path: str
    side: Literal["input", "output"]


_PRE_NORM = {
    "resid_pre": Tap("", "input"),
    "attn_out": Tap("self_attn", "output"),
    "post_ln": Tap("mlp", "input"),
    "mlp_out": Tap("mlp", "output"),
    "resid_post": Tap("", "output"),
}


@dataclass(frozen=True)
class Anatomy:
    """Attribute paths of a family, from the causal language model down."""

    backbone: str = "model"
    blocks: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    embedding: str = "model.embed_tokens"
    sites: Mapping[str, Tap] = field(default_factory=lambda: _PRE_NORM)


# Gemma normalises what a sublayer puts out too, and adds that to the residual stream.
_PRE_AND_POST_NORM = {
    **_PRE_NORM,
    "attn_out": Tap("post_attention_layernorm", "output"),
    "mlp_out": Tap("post_feedforward_layernorm", "output"),
}

FAMILIES: Mapping[str, Anatomy] = {
    "llama": Anatomy(),
    "mistral": Anatomy(),
    "qwen2": Anatomy(),
    "qwen3": Anatomy(),
    "gemma2": Anatomy(sites=_PRE_AND_POST_NORM),
}
"""By ``model_type`` of the configuration. What stands here is compared with plain transformers by the tests."""


def anatomy_of(model_type: str) -> Anatomy:
    """The family's row.

    Raises:
        LensError: the family is not in the table.
    """
    try:
        return FAMILIES[model_type]
    except KeyError:
        known = ", ".join(FAMILIES)
        raise LensError(f"models of type {model_type!r} are not supported; supported are: {known}") from None


def part(model: Any, path: str) -> Any:
    """The part of a model at an attribute path; the model itself for an empty one.

    Raises:
        LensError: there is nothing at that path, so the model is not built as its family is.
    """
    if not path:
        return model
    try:
        return operator.attrgetter(path)(model)
    except AttributeError:
        raise LensError(f"{type(model).__name__} has no {path!r}, where its family keeps it") from None


def replace_part(model: Any, path: str, new: Any) -> None:
    """Put another module at an attribute path."""
    above, _, name = path.rpartition(".")
    setattr(part(model, above), name, new)
