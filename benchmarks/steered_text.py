"""What steering does to open-ended text, and what it costs in fluency: the demo model's moods, α by α.

    python benchmarks/steered_text.py

A direction from the mood pairs (position ``mean``, ``resid_post``) steers greedy stories; beside it random directions of the
same norm. Mood is the share of cheerful among the words of mood in the texts, fluency the perplexity of the steered texts
under the unsteered model.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lens_magic as lens
from lens_magic.demo.make.stories import LEXICON

DATA = Path(lens.__file__).parent / "demo" / "data"
OPENINGS = (
    "Once upon a time, Tom walked to the park.",
    "One day, Mia found a box near the river.",
    "Every day, Otto walked past the school.",
    "In the evening, Clara came home from the market.",
    "Last week, Jack went to the forest to look for a lamp.",
    "Early in the morning, Nina opened the door and looked at the lake.",
)
ALPHAS = (-3.0, -1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5, 3.0)
WORDS = {mood: {word for words in LEXICON[mood].values() for word in words} for mood in LEXICON}


def mood(text: str) -> tuple[int, int]:
    """Count the words and phrases of each mood in a text: cheerful, gloomy."""
    return (
        sum(len(re.findall(rf"\b{re.escape(word)}\b", text)) for word in WORDS["cheerful"] - WORDS["gloomy"]),
        sum(len(re.findall(rf"\b{re.escape(word)}\b", text)) for word in WORDS["gloomy"] - WORDS["cheerful"]),
    )


def surprise(prompt: str, ids: Sequence[int]) -> float:
    """Mean −log probability of the text under the unsteered model, in nats per token."""
    run = lens.run(prompt, force=list(ids), layers=-1, capture="resid_post", top_k=1)
    return float(-np.log(run.to_xarray()["target_prob"].values.astype(np.float64)).mean())


def steered(vector: Any, alpha: float, tokens: int) -> dict[str, Any]:
    terms = (vector * alpha,) if alpha else ()
    made = lens.generate(list(OPENINGS), tokens, steer=terms)
    found = np.array([mood(one.text) for one in made]).sum(0)
    nats = np.mean([surprise(prompt, one.output_ids) for prompt, one in zip(OPENINGS, made, strict=True)])
    share = float(found[0] / found.sum()) if found.sum() else None
    words = float(found.sum() / len(made))
    return {"alpha": alpha, "cheerful": share, "words": words, "perplexity": float(np.exp(nats)), "text": made[0].text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="3")
    parser.add_argument("--random", type=int, default=3, help="how many random directions")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--out", type=Path, help="write the figures and texts here, as JSON")
    given = parser.parse_args()
    lens.load("demo")
    vector = lens.train_vector(DATA / "mood-pairs.jsonl", layers=given.layers, site="resid_post", position="mean")
    directions = {"mood": vector}
    for seed in range(given.random):
        generator = torch.Generator().manual_seed(seed)
        raw = {layer: torch.randn(vector.width, generator=generator) for layer in vector.layers}
        directions[f"random {seed}"] = lens.SteeringVector.of(raw, site="resid_post", name="random")
    results = {}
    for name, direction in directions.items():
        print(f"{name}, layers {given.layers}: α, share of cheerful words, words of mood a text, perplexity, first text")
        results[name] = [steered(direction, alpha, given.tokens) for alpha in ALPHAS]
        for row in results[name]:
            share = "  –" if row["cheerful"] is None else f"{row['cheerful']:4.0%}"
            begins = repr(row["text"][:150])
            print(f"{row['alpha']:+6.2f} {share} {row['words']:5.1f} {row['perplexity']:9.2f}  {begins}", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
