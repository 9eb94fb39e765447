"""What the time of a decode step goes to, on a CPU: operations by kind, and what lies between them.

python -m benchmarks.step [--model demo] [--tokens 200] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import lens_magic as lens

PROMPT = "Where is the oldest technical university located in America?"
KINDS = {
    "matrix products": ("mm", "addmm", "linear", "bmm", "mkldnn_linear", "mv"),
    "attention": ("scaled_dot_product", "softmax", "flash"),
    "copies and concatenation (cache, rotary halves, captures)": (
        "copy_",
        "cat",
        "index_copy_",
        "clone",
        "contiguous",
        "repeat",
    ),
}


def kind_of(operation: str) -> str:
    """Return the row in which an operation is counted."""
    name = operation.removeprefix("aten::").lstrip("_")
    for kind, beginnings in KINDS.items():
        if name.startswith(beginnings):
            return kind
    return "element by element (norms, rotary embedding, activations, choosing)"


def measure(generate: Callable[[], Any], tokens: int) -> dict[str, float]:
    """Return microseconds per token: the whole step without a profiler, operations by kind with one, and the rest."""
    generate()
    started = time.process_time()
    timings = generate().timings
    whole = (time.process_time() - started) / tokens * 1e6
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        generate()
    rows: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            rows[kind_of(event.key)] += event.self_cpu_time_total / tokens
    inside = sum(rows.values())
    return {
        "whole step": whole,
        **dict(sorted(rows.items(), key=lambda row: -row[1])),
        "between operations (Python, transformers' modules)": max(0.0, whole - inside),
        "tokens a second": timings["tokens_per_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lens.load(options.model)

    def generate() -> Any:
        return lens.generate(PROMPT, options.tokens, ignore_eos=True)

    found = measure(generate, options.tokens)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for row, value in found.items():
        print(f"{value:10.1f} {'' if row.startswith('tokens') else 'µs'}  {row}")


if __name__ == "__main__":
    main()
