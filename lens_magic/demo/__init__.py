"""The embedded demo model: a small Qwen3 with trained weights, for learning with, offline. See CARD.md beside this file."""

from pathlib import Path


def path() -> Path:
    """The folder of the checkpoint, in the layout that `transformers.AutoModelForCausalLM.from_pretrained` takes."""
    return Path(__file__).parent / "checkpoint"
