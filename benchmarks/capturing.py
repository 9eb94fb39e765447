"""What capturing and steering cost generation, on one rank and in one run: tokens a second of each way, in turn.

By one clock for all: seconds from asking to having, less those of the projection afterwards. Steering is compared in
processor time too, which other work on the machine changes less.

python -m benchmarks.capturing [WAY ...] [--model demo] [--tokens 300] [--rounds 7] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

import lens_magic as lens
from benchmarks import methods, sharded
from lens_magic.model.load import MODEL
from lens_magic.session import current
from lens_magic.steer.term import SteeringTerm
from lens_magic.steer.vector import SteeringVector

BASE, PLAIN = "not capturing", "transformers' generate"
PROMPT = "Where is the oldest technical university located in America?"


class Sample(NamedTuple):
    """One generation: tokens a second, and seconds of the processor's time."""

    rate: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "ways", nargs="*", metavar="WAY", help="those whose name contains it, beside not capturing; all by default"
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lens.load(options.model)
    sharded.MODELS["plain"] = sharded.Plain(current().group.rank.store[MODEL].model)
    ids = current().require_model().tokenizer(PROMPT)["input_ids"]

    def transformers() -> None:
        methods.generate(None, ids, options.tokens)

    def run(stream: bool) -> float:
        return float(lens.run(PROMPT, options.tokens, ignore_eos=True, stream_lens=stream).timings["project_s"])

    def generate(*steer: SteeringTerm) -> None:
        lens.generate(PROMPT, options.tokens, ignore_eos=True, steer=steer)

    def sample(way: Callable[[], float | None]) -> Sample:
        begun, processor = time.perf_counter(), time.process_time()
        projected = way() or 0.0
        return Sample(options.tokens / (time.perf_counter() - begun - projected), time.process_time() - processor)

    layers, width = current().require_model().layers, current().require_model().width
    directions = {layer: torch.randn(width, generator=torch.Generator().manual_seed(layer)) for layer in range(layers)}
    vector, one = SteeringVector.of(directions, site="post_ln", name="random"), [layers // 2]
    ways: dict[str, Callable[[], float | None]] = {
        BASE: generate,
        "capturing": lambda: run(False),
        "capturing, rows live": lambda: run(True),
        "steered, one layer": lambda: generate(vector.steer(0.01, layers=one)),
        "one layer, decaying, clipped": lambda: generate(vector.steer(0.01, layers=one, decay=16, clip=0.5)),
        "steered, every layer": lambda: generate(vector.steer(0.01)),
        "every layer, decaying, clipped": lambda: generate(vector.steer(0.01, decay=16, clip=0.5)),
        PLAIN: transformers,
    }
    if options.ways:
        ways = {way: made for way, made in ways.items() if way == BASE or any(part in way for part in options.ways)}
    found: dict[str, list[Sample]] = {way: [] for way in ways}
    for number in range(options.rounds + 1):  # the first is a warm-up
        for way, generates in ways.items():
            taken = sample(generates)
            if number:
                found[way].append(taken)
    for way, samples in found.items():
        rates = [one.rate for one in samples]
        ratios = [
            f"{statistics.median(a.rate / b.rate for a, b in zip(samples, found[other], strict=True)):.3f} × {other}"
            for other in (BASE, PLAIN)
            if other in found
        ]
        if way not in (BASE, PLAIN) and not way.startswith("capturing"):  # what a run projects is not told apart by this clock
            processor = [b.processor / a.processor for a, b in zip(samples, found[BASE], strict=True)]
            ratios.append(f"{statistics.median(processor):.3f} ± {error_of_median(processor):.3f} in processor time")
        spread = f"({min(rates):.0f} – {max(rates):.0f})"
        print(f"{way:30} {statistics.median(rates):6.1f} tokens/s {spread:12}  {', '.join(ratios)}")


def error_of_median(values: list[float]) -> float:
    """Return the standard error of the median, by resampling."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    return float(np.median(drawn, axis=1).std())


if __name__ == "__main__":
    main()
