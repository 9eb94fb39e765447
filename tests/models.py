"""Small random checkpoints of awkward shapes, byte-identical wherever they are built.

To add a model, add a row to `MODELS`: a callable that returns a transformers model of any family. Weights, tokenizer
and files follow from the row.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

END, OTHER = "<|end|>", "<|user|>"
PROMPT = "A lens gathers the light of a distant lamp"
TEXT = """\
A lens gathers the light that leaves a lamp and bends it to a point. The nearer the lamp, the farther the point.
Grind the glass a little thinner and the image grows; grind it unevenly and every edge is fringed with colour.
She read the letters through it: first the capitals, then the small print, then the grain of the paper itself.
What is the answer? (A) yes (B) no. The answer is (A). Two and two are 4; 10 and 10 are 20, and 1999 was a year.
def look(through, at): return [through(point) for point in at]
Über den Wolken ist das Licht heller. Où est la lumière ? Γειά σου κόσμε. 光は速い。
"""


def causal(config_class: type[PreTrainedConfig], *, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """A randomly initialised causal model, peaked enough that greedy choices are seldom close."""
    shared = {"initializer_range": 0.3, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 0}
    config = config_class(**{**shared, **options})
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def twins(**options: Any) -> PreTrainedModel:
    """A Llama whose head has every row twice, so that each logit is tied with its neighbour's."""
    model = causal(LlamaConfig, **options)
    with torch.no_grad():
        model.lm_head.weight[1::2] = model.lm_head.weight[: 2 * (options["vocab_size"] // 2) : 2]
    return model


def _shape(layers: int, hidden: int, inner: int, heads: int, kv: int, vocab: int, tied: bool = False) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }


def _plain_shape(layers: int, hidden: int, heads: int, vocab: int, **options: Any) -> dict[str, Any]:
    """For families that have as many key heads as query heads, and no setting for it."""
    shape = _shape(layers, hidden, 2 * hidden + 8, heads, heads, vocab)
    del shape["num_key_value_heads"]
    return {**shape, **options}


def _gemma3(**options: Any) -> dict[str, Any]:
    return {
        **_shape(4, 64, 128, 4, 2, 303, tied=True),
        "head_dim": 24,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
        **options,
    }


def sees(**options: Any) -> PreTrainedModel:
    """A Gemma 3 that also sees: the language model is one part of it, and its settings one level down."""
    config = Gemma3Config(
        text_config={"initializer_range": 0.3, "max_position_embeddings": 512, "bos_token_id": None, **options},
        vision_config={"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2},
        eos_token_id=0,
        mm_tokens_per_image=4,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


_llama = partial(causal, LlamaConfig)
_neox = partial(causal, GPTNeoXConfig, rotary_pct=0.5)
_LONG_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_qwen3 = partial(causal, Qwen3Config)

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama-gqa": partial(_llama, **_shape(4, 128, 192, 8, 4, 320), initializer_range=0.2),
    "llama-odd-vocab": partial(_llama, **_shape(3, 64, 128, 8, 2, 331)),
    "llama-tied": partial(_llama, **_shape(4, 80, 160, 8, 4, 269, tied=True)),
    "llama-bias": partial(_llama, **_shape(3, 64, 144, 4, 2, 300), attention_bias=True, mlp_bias=True),
    "llama-6heads": partial(_llama, **_shape(3, 96, 168, 6, 2, 288)),
    "llama-1kv": partial(_llama, **_shape(4, 64, 96, 4, 1, 310)),
    "llama-8heads": partial(_llama, **_shape(5, 128, 256, 8, 8, 307), initializer_range=0.2),
    "llama-width72": partial(_llama, **_shape(3, 72, 100, 4, 2, 283)),
    # Steeper weights would magnify bfloat16's rounding until any two orders of summation disagreed about everything.
    "llama-bf16": partial(_llama, **_shape(3, 96, 160, 8, 4, 320), dtype=torch.bfloat16, initializer_range=0.1),
    "llama-twins": partial(twins, **_shape(3, 64, 128, 4, 2, 313)),
    "qwen3-odd": partial(_qwen3, **_shape(4, 80, 136, 4, 2, 333, tied=True), head_dim=32),
    "qwen3-gqa": partial(_qwen3, **_shape(3, 96, 160, 6, 3, 340), head_dim=16),
    "qwen2-bias": partial(causal, Qwen2Config, **_shape(3, 64, 120, 4, 2, 305)),
    # The window is shorter than the prompt, so that a cache that forgets, or does not, shows.
    "mistral-window": partial(causal, MistralConfig, **_shape(3, 64, 128, 8, 2, 311), sliding_window=6),
    "gemma2": partial(causal, Gemma2Config, **_shape(4, 64, 128, 4, 2, 299, tied=True), head_dim=24, sliding_window=6),
    "llama-3.1": partial(
        _llama,
        **_shape(2, 64, 112, 4, 2, 309),
        rope_parameters={**_LONG_ROPE, "original_max_position_embeddings": 64},
    ),
    "gemma": partial(causal, GemmaConfig, **_shape(2, 64, 128, 4, 1, 298, tied=True), head_dim=24),
    "gemma3-text": partial(causal, Gemma3TextConfig, **_gemma3()),
    "gemma3-sees": partial(sees, **_gemma3()),
    "neox-parallel": partial(_neox, **_plain_shape(3, 64, 4, 306), use_parallel_residual=True),
    "neox-sequential": partial(_neox, **_plain_shape(2, 96, 6, 304), use_parallel_residual=False),
    # Below 0.5 the clipping of queries, keys and values does something.
    "olmo": partial(causal, OlmoConfig, **_shape(3, 64, 112, 4, 2, 301), clip_qkv=0.5),
    "olmo2": partial(causal, Olmo2Config, **_shape(3, 72, 120, 6, 3, 292)),
    "opt": partial(
        causal, OPTConfig, **_plain_shape(3, 64, 4, 294, tie_word_embeddings=True), ffn_dim=136, word_embed_proj_dim=64
    ),
    "phi": partial(causal, PhiConfig, **_shape(2, 64, 136, 4, 4, 296)),
    "phi3": partial(causal, Phi3Config, **_shape(3, 96, 168, 6, 3, 297), pad_token_id=0),
    "gpt2": partial(causal, GPT2Config, **_plain_shape(3, 80, 5, 291, tie_word_embeddings=True)),
    "mixtral": partial(causal, MixtralConfig, **_shape(2, 64, 76, 4, 2, 293), num_local_experts=4, num_experts_per_tok=2),
    # One dense layer between two with experts.
    "qwen3-moe": partial(
        causal,
        Qwen3MoeConfig,
        **_shape(3, 64, 112, 4, 2, 295),
        head_dim=16,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=40,
        mlp_only_layers=[1],
        norm_topk_prob=True,
    ),
}

# One of each family, for what need not be tested on every shape.
FAMILIES = (
    "llama-gqa",
    "mistral-window",
    "qwen2-bias",
    "qwen3-odd",
    "gemma",
    "gemma2",
    "gemma3-text",
    "gemma3-sees",
    "olmo",
    "olmo2",
    "phi",
    "phi3",
    "neox-parallel",
    "neox-sequential",
    "opt",
    "gpt2",
    "mixtral",
    "qwen3-moe",
)

# Published checkpoints pad their embeddings beyond the tokenizer: the ids above these have a logit and no text.
TOKENS: dict[str, int] = {"qwen3-odd": 300, "llama-bf16": 290, "qwen2-bias": 300}

# What a generation_config may hold besides one end token: several of them, which count, and the rest, which does not.
GENERATION: dict[str, dict[str, Any]] = {
    "qwen3-odd": {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.3},
    "llama-gqa": {"eos_token_id": [0, 7]},
}


def tokenizer_of(size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `size` tokens (at least 258), with no BOS, whose end token is id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, OTHER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        additional_special_tokens=[OTHER],
        clean_up_tokenization_spaces=False,
    )


def create(name: str) -> PreTrainedModel:
    """The model of a row of `MODELS`, in memory; the random state of the caller is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        return roughen(MODELS[name]().eval())


@torch.no_grad()
def roughen(model: PreTrainedModel) -> PreTrainedModel:
    """Move norms and biases off the ones and zeros they start as, with which forgetting them would go unnoticed."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def build(name: str, folder: Path | str) -> Path:
    """Write the checkpoint `name` to `folder / name` and return that path; one that is there already is left alone."""
    path = Path(folder) / name
    if (path / "tokenizer_config.json").exists():  # written last; rewriting weights that a model has mapped would crash it
        return path
    model = create(name)
    model.generation_config = GenerationConfig(**{"eos_token_id": 0, **GENERATION.get(name, {})})
    model.save_pretrained(path)
    tokenizer_of(TOKENS.get(name, model.config.get_text_config().vocab_size)).save_pretrained(path)
    return path


def load_plain(folder: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint as transformers alone reads it: its own dtype, eager attention, one process."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(folder)
