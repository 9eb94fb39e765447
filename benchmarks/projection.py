"""What the figures over the whole vocabulary cost beside the top k alone, in one run of the projection.

    python benchmarks/projection.py --width 1024 --vocabulary 151936 --layers 28 --tokens 32

Both are the package's own projection on one rank over random states and weights, in turn. "Top k alone" leaves out what
only entropy, log-sum-exp (so probabilities), KL and target rank need: the passes over a cell's logits and the model's own
logits beside them. The states are random, so the figures' worst case: nothing about a cell is easy to guess.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from lens_magic.gpu import onepass
from lens_magic.lens import decode, figures
from lens_magic.lens.capture import CapturePlan, Trajectories
from lens_magic.lens.projector import PLAIN, Projector
from lens_magic.model.head import HeadShard
from lens_magic.ranks.rank import Rank

SITES = ("attn_out", "mlp_out", "resid_post")
KINDS = ("top k alone", "whole vocabulary")


def setting(width: int, vocabulary: int, layers: int, tokens: int, dtype: torch.dtype, device: str) -> tuple[Any, Trajectories]:
    """Return a model's head and norm, and the states of a run, all random."""
    torch.manual_seed(0)
    weight = (torch.randn(vocabulary, width, device=device) * 3 / width**0.5).to(dtype)  # logits of standard deviation 3
    loaded: Any = SimpleNamespace(
        head=HeadShard(weight, None, 0),
        norm=torch.nn.RMSNorm(width, dtype=dtype, device=device),
        bounds=[0, vocabulary],
        device=weight.device,
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        dtype=dtype,
    )
    trajectories = Trajectories(Rank(), loaded, CapturePlan(SITES, tuple(range(layers)), 0, tokens))
    trajectories.buffer.normal_()
    return loaded, trajectories


@contextlib.contextmanager
def top_k_alone() -> Iterator[None]:
    """Run the projection without the measures over the whole vocabulary."""

    def no_output(logits: torch.Tensor) -> figures.Output:
        ones = logits.new_ones(len(logits))
        return figures.Output(ones, ones[:, None], ones, ones)

    def no_figures(logits: Any, largest: Any, target: Any, weights: Any, scratch: Any, tile: Any, into: Any) -> None:
        for figure in (into.total, into.weighted, into.crossed, into.above):
            figure[tile] = 1

    def no_sums(logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> Any:
        """The GPU kernel's part: compute only the groups' maxima."""
        ones = logits.new_ones(logits.shape[:2])
        return (ones, ones, ones, ones), figures.group_maxima(logits.flatten(0, 1))

    with (
        mock.patch.object(figures.Output, "of", no_output),
        mock.patch.object(figures, "measure", no_figures),
        mock.patch.object(onepass, "sums", no_sums),
    ):
        yield


def measure(loaded: Any, trajectories: Trajectories, k: int, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Return seconds of each projection, the two kinds in turn, after a warm-up of each."""
    targets = [place % loaded.vocabulary for place in range(trajectories.plan.rows)]
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for kind in KINDS:
            with top_k_alone() if kind == KINDS[0] else contextlib.nullcontext():
                begun = clock()
                decode.project(Rank(), loaded, Projector(loaded, PLAIN, None), trajectories, 0, targets, k)
                if number:
                    taken[kind].append(clock() - begun)
    return taken


def parts(loaded: Any, trajectories: Trajectories, k: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return one projection's seconds by kind of call, each timed as it is made."""
    spent: dict[str, float] = {}

    def timed(name: str, function: Any) -> Any:
        def run(*arguments: Any) -> Any:
            begun = clock()
            result = function(*arguments)
            if loaded.device.type == "cuda":
                torch.cuda.synchronize()
            spent[name] = spent.get(name, 0.0) + clock() - begun
            return result

        return run

    targets = [place % loaded.vocabulary for place in range(trajectories.plan.rows)]
    with (
        mock.patch.object(HeadShard, "logits", timed("matrix products", HeadShard.logits)),
        mock.patch.object(figures, "top", timed("top k", figures.top)),
        mock.patch.object(onepass, "top", timed("top k", onepass.top)),
        mock.patch.object(figures, "measure", timed("sums over the vocabulary", figures.measure)),
        mock.patch.object(onepass, "sums", timed("sums over the vocabulary", onepass.sums)),
        mock.patch.object(decode, "combine", timed("combining", decode.combine)),
    ):
        begun = clock()
        decode.project(Rank(), loaded, Projector(loaded, PLAIN, None), trajectories, 0, targets, k)
        spent["all"] = clock() - begun
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="as many as torch takes by itself")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, on a machine that is busy"
    )
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    chosen = parser.parse_args()

    clock = time.process_time if chosen.clock == "cpu" else time.perf_counter
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    cells = chosen.layers * len(SITES) * chosen.tokens
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {chosen.device}; "
        f"{cells:,} cells of width {chosen.width}, vocabulary {chosen.vocabulary:,}"
    )
    found = []
    for name in chosen.dtype.split(","):
        shape = (chosen.width, chosen.vocabulary, chosen.layers, chosen.tokens)
        loaded, trajectories = setting(*shape, getattr(torch, name), chosen.device)
        seconds = measure(loaded, trajectories, chosen.top_k, chosen.rounds, clock)
        for kind, values in seconds.items():
            per_cell = [value / cells * 1e6 for value in values]
            print(
                f"{name:9} {kind:17} {statistics.median(per_cell):8.1f} µs a cell ({min(per_cell):.1f} – {max(per_cell):.1f})"
            )
        ratios = [whole / alone for alone, whole in zip(*seconds.values(), strict=True)]
        spread = f"{min(ratios):.3f} – {max(ratios):.3f}"
        print(f"{name:9} ratio, median of {len(ratios)} pairs: {statistics.median(ratios):.3f} ({spread})")
        spent = parts(loaded, trajectories, chosen.top_k, clock)
        print(f"{name:9} µs a cell: " + ", ".join(f"{part} {value / cells * 1e6:.1f}" for part, value in spent.items()))
        found.append(
            {
                "dtype": name,
                "cells": cells,
                "clock": chosen.clock,
                "seconds": seconds,
                "ratios": ratios,
                "parts": spent,
                "shape": shape,
            }
        )
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": platform.platform(), "cores": os.cpu_count(), "runs": found}, indent=1))


if __name__ == "__main__":
    main()
