"""Where a family of models keeps its blocks, norms and head, and where in a block the sites are.

A family is a row of data. Paths are attribute paths; a site is the input or the output of a module of the block.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import LensError

SITES = ("resid_pre", "attn_out", "post_ln", "mlp_out", "resid_post")
"""All sites of a block, in the order in which data passes through them."""

DEFAULT_SITES = ("attn_out", "mlp_out", "resid_post")


@dataclass(frozen=True)
class Tap:
    """A point of a block: the first tensor a module receives, or the first it returns; path "" is the block itself."""

    path: str
    side: Literal["input", "output"]


@dataclass(frozen=True)
class Requirement:
    """A condition that a model must meet for its family's row to apply.

    Attributes:
        met: given the model's configuration, whether it is met.
        otherwise: completes the error "models of type 'x' …" if it is not met; says what would work.
    """

    met: Callable[[Any], bool]
    otherwise: str


def _is_causal(config: Any) -> bool:
    text = config.get_text_config()
    return getattr(text, "is_causal", True) and not getattr(text, "use_bidirectional_attention", False)


_CAUSAL = Requirement(_is_causal, "that attend in both directions (EmbeddingGemma) predict no tokens; causal ones work")

_PRE_NORM = {
    "resid_pre": Tap("", "input"),
    "attn_out": Tap("self_attn", "output"),
    "post_ln": Tap("mlp", "input"),
    "mlp_out": Tap("mlp", "output"),
    "resid_post": Tap("", "output"),
}


@dataclass(frozen=True)
class Anatomy:
    """One family of models.

    Attributes:
        backbone, blocks, norm, head, embedding: attribute paths from the causal language model down.
        sites: paths from a block down.
        requirements: a model that does not meet them all is refused.
        unused: parts the language model runs without; they are dropped.
        autotp: whether DeepSpeed's AutoTP splits the blocks; if not, ``adjust`` does.
        adjust: names of functions of :mod:`.adjust`, applied to each block afterwards, on more than one rank.
        experts: the configuration's setting for the inner width of experts, if there are any (:mod:`.experts`).
        has_sdpa: whether torch's scaled dot-product attention can run it; if not, all scores of a forward are held at once.
        wants_mask: without a mask the model makes its own, from the cache's length, which a recorded step must not read.
        whole: what every rank keeps in full, in words.
    """

    backbone: str = "model"
    blocks: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    embedding: str = "model.embed_tokens"
    sites: Mapping[str, Tap] = field(default_factory=lambda: _PRE_NORM)
    requirements: tuple[Requirement, ...] = ()
    unused: tuple[str, ...] = ()
    autotp: bool = True
    adjust: tuple[str, ...] = ()
    experts: str | None = None
    has_sdpa: bool = True
    wants_mask: bool = False
    whole: str = "embedding and norms"

    @property
    def norms_follow(self) -> bool:
        """Whether a norm follows each sublayer, before what it returns is added to the residual stream."""
        return self.sites == _POST_NORM


# If a norm follows a sublayer, the norm's output is what is added to the residual stream.
_POST_NORM = {
    **_PRE_NORM,
    "attn_out": Tap("post_attention_layernorm", "output"),
    "mlp_out": Tap("post_feedforward_layernorm", "output"),
}

# OPT has no module for its MLP: the two linear layers are in the block itself, and get all tokens in one row ([tokens, d]).
_BARE_MLP = {**_PRE_NORM, "post_ln": Tap("fc1", "input"), "mlp_out": Tap("fc2", "output")}

_EXPERTS = Anatomy(adjust=("sum_experts",), whole="embedding, norms and routers")

FAMILIES: Mapping[str, Anatomy] = {
    "llama": Anatomy(),
    "mistral": Anatomy(),
    "qwen2": Anatomy(),
    "qwen3": Anatomy(),
    "gemma": Anatomy(),
    "gemma2": Anatomy(sites=_POST_NORM, has_sdpa=False),  # it soft-caps scores
    "gemma3_text": Anatomy(sites=_POST_NORM),
    "gemma3": Anatomy(  # multimodal checkpoints; only their language model
        backbone="model.language_model",
        blocks="model.language_model.layers",
        norm="model.language_model.norm",
        embedding="model.language_model.embed_tokens",
        sites=_POST_NORM,
        unused=("model.vision_tower", "model.multi_modal_projector"),
    ),
    "olmo": Anatomy(whole="embedding"),  # its norms have no parameters
    "olmo2": Anatomy(sites=_POST_NORM, adjust=("split_full_width_norms",)),
    "phi": Anatomy(norm="model.final_layernorm"),
    "phi3": Anatomy(adjust=("count_local_heads",)),
    "gpt_neox": Anatomy(
        backbone="gpt_neox",
        blocks="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        embedding="gpt_neox.embed_in",
        sites={**_PRE_NORM, "attn_out": Tap("attention", "output")},
    ),
    "opt": Anatomy(
        blocks="model.decoder.layers",
        norm="model.decoder.final_layer_norm",
        embedding="model.decoder.embed_tokens",
        sites=_BARE_MLP,
        requirements=(
            Requirement(
                lambda config: config.do_layer_norm_before and not config._remove_final_layer_norm,
                "without a final norm (opt-350m) have nothing to read states with; those that normalise before a sublayer work",
            ),
            Requirement(
                lambda config: config.word_embed_proj_dim == config.hidden_size,
                "whose embedding has another width than their blocks are not supported; those of one width work",
            ),
        ),
        wants_mask=True,
        whole="embeddings and norms",
    ),
    "gpt2": Anatomy(
        backbone="transformer",
        blocks="transformer.h",
        norm="transformer.ln_f",
        embedding="transformer.wte",
        sites={**_PRE_NORM, "attn_out": Tap("attn", "output")},
        requirements=(
            Requirement(
                lambda config: not config.add_cross_attention,
                "with cross-attention need another model's states; those without it work",
            ),
        ),
        autotp=False,
        adjust=("split_gpt2",),
        whole="embeddings and norms",
    ),
    "mixtral": replace(_EXPERTS, experts="intermediate_size"),
    "qwen3_moe": replace(_EXPERTS, experts="moe_intermediate_size"),
}
"""The families, by the configuration's ``model_type``. The tests compare them with plain transformers."""


def anatomy_of(model_type: str, config: Any = None) -> Anatomy:
    """Return the family's row.

    Args:
        config: the model's configuration, checked against the row's ``requirements`` and what all families need.

    Raises:
        LensError: the family is not in the table, or the model does not meet its requirements.
    """
    try:
        anatomy = FAMILIES[model_type]
    except KeyError:
        known = ", ".join(FAMILIES)
        raise LensError(f"models of type {model_type!r} are not supported; supported are: {known}") from None
    for requirement in (_CAUSAL, *anatomy.requirements) if config is not None else ():
        if not requirement.met(config):
            raise LensError(f"models of type {model_type!r} {requirement.otherwise}")
    return anatomy


def context_of(config: Any) -> int:
    """Return the longest sequence a model takes.

    With long RoPE (Phi-3 and 4 of 128k) that is the length up to which its short factors apply. Beyond it the long factors
    apply to the whole text, its beginning included, which neither a key-value cache nor reading in chunks can do. With YaRN
    (enabled in the configuration, as the Qwen models describe) it is the length to which YaRN stretches the original one.
    Vicunas of 16k and LongChats, with linear RoPE, state the stretched length beside the original one.

    Args:
        config: the language model's configuration.

    Raises:
        LensError: it says that no token fits.
    """
    longest = int(config.max_position_embeddings)
    if longest < 1:
        raise LensError(f"its configuration says that max_position_embeddings is {longest}, where 1 or more tokens would do")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # some families have one per kind of layer
    for kind in kinds:
        if kind.get("rope_type") == "longrope":
            longest = min(longest, int(kind.get("original_max_position_embeddings", longest)))
        elif kind.get("rope_type") == "yarn":
            original = kind.get("original_max_position_embeddings") or config.max_position_embeddings
            longest = max(longest, int(original * kind.get("factor", 1.0)))
        elif kind.get("rope_type") == "linear":
            longest = max(longest, int(getattr(config, "max_sequence_length", None) or longest))
    return longest


def most_ranks(config: Any) -> tuple[int, str]:
    """Return the most ranks a model can be split over, so that each has something to do, and in words what limits them.

    Args:
        config: the model's configuration, or its language model's.
    """
    config = config.get_text_config()
    heads, vocabulary = int(config.num_attention_heads), int(config.vocab_size)
    if vocabulary < heads:
        return vocabulary, f"a vocabulary of {vocabulary}"
    return heads, f"{heads} attention heads"


def part(model: Any, path: str) -> Any:
    """Return the part of a model at an attribute path; the model itself for an empty path.

    Raises:
        LensError: there is nothing at that path, so the model is not built like its family.
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
