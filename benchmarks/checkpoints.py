"""The measured models: the demo model, and random weights in the shapes of other models, written once.

Speed and memory depend on shapes, not on the values of the weights. Models with random weights use the demo model's
tokenizer: ids above its own have logits but no text.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parent.parent / "lens_magic" / "demo" / "checkpoint"
PROMPT = "Where is the oldest technical university located in America?"


def shape(
    layers: int, width: int, inner: int, heads: int, kv: int, vocabulary: int, tied: bool = False, **more: Any
) -> dict[str, Any]:
    """Return a configuration's sizes under transformers' names."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
        **more,
    }


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5-0.5b": ("Qwen2", shape(24, 896, 4864, 14, 2, 151_936, tied=True)),
    "demo-4096": ("Qwen3", shape(8, 256, 768, 12, 12, 2_304, tied=True, head_dim=16)),  # for longer answers than the demo's
    # For scaling: one number varies, the others are fixed.
    **{f"layers-{n}": ("Llama", shape(n, 256, 768, 8, 8, 2_304)) for n in (4, 8, 16, 32)},
    **{f"vocabulary-{n}": ("Llama", shape(8, 256, 768, 8, 8, n)) for n in (2_304, 9_216, 36_864, 147_456)},
    # On one H200 (gpu.py).
    "qwen3-4b": ("Qwen3", shape(36, 2560, 9728, 32, 8, 151_936, tied=True, head_dim=128)),
    "llama-3.1-8b": ("Llama", shape(32, 4096, 14_336, 32, 8, 128_256, head_dim=128)),
    "qwen3-14b": ("Qwen3", shape(40, 5120, 17_408, 40, 8, 151_936, head_dim=128)),
    "qwen3-32b": ("Qwen3", shape(64, 5120, 25_600, 64, 8, 151_936, head_dim=128)),
}
"""Family and sizes, by name."""


def config(name: str) -> Any:
    """Return the configuration of a shape."""
    import transformers

    family, sizes = SHAPES[name]
    return getattr(transformers, f"{family}Config")(**sizes, bos_token_id=None, eos_token_id=0, pad_token_id=0)


def folder(name: str, into: Path) -> Path:
    """Return the folder of a model's checkpoint; random weights (bfloat16) are written if there are none of this shape."""
    if name == "demo":
        return DEMO
    path = into / "models" / name
    if (path / "tokenizer.json").exists() and _has_shape(path, name):  # the tokenizer is written last
        return path
    import torch
    from transformers import AutoModelForCausalLM

    shutil.rmtree(path, ignore_errors=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config(name), dtype=torch.bfloat16).save_pretrained(path)
    for file in ("tokenizer_config.json", "tokenizer.json"):
        shutil.copy(DEMO / file, path / file)
    return path


def _has_shape(path: Path, name: str) -> bool:
    """Whether a checkpoint has the model's current shape."""
    family, sizes = SHAPES[name]
    written = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return written["architectures"] == [f"{family}ForCausalLM"] and all(written.get(key) == sizes[key] for key in sizes)
