"""What capturing and steering cost generation, on one rank and in one run: tokens a second of each way, in turn.

By one clock for all: seconds from asking to having, less those of the projection afterwards.

python -m benchmarks.capturing [--model demo] [--tokens 300] [--rounds 7] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import lens_magic as lens
from benchmarks import methods, sharded
from lens_magic.session import current
from lens_magic.steer.term import SteeringTerm
from lens_magic.steer.vector import SteeringVector

PROMPT = "Where is the oldest technical university located in America?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lens.load(options.model)
    sharded.MODELS["plain"] = sharded.Plain(current().group.rank.store["model"].model)
    ids = current().require_model().tokenizer(PROMPT)["input_ids"]

    def transformers() -> None:
        methods.generate(None, ids, options.tokens)

    def run(stream: bool) -> float:
        return float(lens.run(PROMPT, options.tokens, ignore_eos=True, stream_lens=stream).timings["project_s"])

    def generate(*steer: SteeringTerm) -> None:
        lens.generate(PROMPT, options.tokens, ignore_eos=True, steer=steer)

    def rate_of(way: Callable[[], float | None]) -> float:
        begun = time.perf_counter()
        projected = way() or 0.0
        return float(options.tokens / (time.perf_counter() - begun - projected))

    layers, width = current().require_model().layers, current().require_model().width
    directions = {layer: torch.randn(width, generator=torch.Generator().manual_seed(layer)) for layer in range(layers)}
    vector, one = SteeringVector.of(directions, site="post_ln", name="random"), [layers // 2]
    ways: dict[str, Callable[[], float | None]] = {
        "not capturing": generate,
        "capturing": lambda: run(False),
        "capturing, rows live": lambda: run(True),
        "steered, one layer": lambda: generate(vector.steer(0.01, layers=one)),
        "one layer, decaying, clipped": lambda: generate(vector.steer(0.01, layers=one, decay=16, clip=0.5)),
        "steered, every layer": lambda: generate(vector.steer(0.01)),
        "every layer, decaying, clipped": lambda: generate(vector.steer(0.01, decay=16, clip=0.5)),
        "transformers' generate": transformers,
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(options.rounds + 1):  # the first is a warm-up
        for way, generates in ways.items():
            rate = rate_of(generates)
            if number:
                found[way].append(rate)
    for way, rates in found.items():
        against = {
            other: statistics.median(a / b for a, b in zip(rates, found[other], strict=True))
            for other in ("not capturing", "transformers' generate")
        }
        spread = f"({min(rates):.0f} – {max(rates):.0f})"
        ratios = ", ".join(f"{ratio:.3f} × {other}" for other, ratio in against.items())
        print(f"{way:30} {statistics.median(rates):6.1f} tokens/s {spread:12}  {ratios}")


if __name__ == "__main__":
    main()
