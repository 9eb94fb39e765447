"""The embedded demo model: a small Qwen3 with trained weights, for learning with, offline. See CARD.md beside this file."""

from pathlib import Path


def path() -> Path:
    """The folder of the checkpoint, in the layout that `transformers.AutoModelForCausalLM.from_pretrained` takes."""
    return Path(__file__).parent / "checkpoint"


def data_sets() -> dict[str, Path]:
    """The data sets to learn directions from and to measure them with, by name: ``demo/mood-pairs`` and so on."""
    return {f"demo/{file.stem}": file for file in sorted((Path(__file__).parent / "data").glob("*.jsonl"))}
