"""On one GPU: how near decoding comes to the memory's speed, and what capturing costs there.

    python -m benchmarks gpu

Random bfloat16 weights in the shapes of four models, made on the card itself; T = 1,500, every layer, three sites. Bandwidth is
the bytes a token has to read (weights, keys and values) over the card's own measured copy rate.
"""

from __future__ import annotations

import gc
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lens_magic as lens

from . import machine
from .checkpoints import DEMO, PROMPT, config
from .store import of_this_tree
from .tables import bytes_a_token, spread

SHAPES = ("qwen3-4b", "llama-3.1-8b", "qwen3-14b", "qwen3-32b")
TOKENS, ROUNDS, WARM_TOKENS = 1500, 5, 32
SITES = ("attn_out", "mlp_out", "resid_post")


def measure(out: Path, shapes: Sequence[str] = SHAPES, tokens: int = TOKENS, rounds: int = ROUNDS) -> Path | None:
    """Measure every shape that fits, write ``out/gpu.json`` after each. Without a GPU nothing is run, and that is said."""
    import torch

    if not torch.cuda.is_available():
        print("gpu: there is no CUDA device here; nothing was run")
        return None
    path = out / "gpu.json"
    its = machine.describe_with_gpu()
    about = {
        "machine": its,
        "copy_bytes_per_s": machine.copy_rate("cuda", megabytes=4096),
        **of_this_tree(),
        "tokens": tokens,
        "kernels_not_used": _kernels_not_used(torch.device("cuda", 0)),
        **machine.now(),
    }
    models: list[dict[str, Any]] = []
    for shape in shapes:
        needed = bytes_a_token(shape, "bfloat16", tokens)
        if needed > 0.9 * its["gpu_bytes"]:
            models.append({"model": shape, "left_out": f"{needed / 1e9:.0f} GB of weights do not fit"})
        else:
            models.append({"model": shape, "bytes_a_token": needed, "rounds": _rounds(shape, tokens, rounds)})
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"about": about, "models": models}, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(path.read_text(encoding="utf-8"))))
    return path


def _kernels_not_used(device: Any) -> dict[str, str]:
    """Our own kernels that torch's operations stand in for here, and why."""
    import torch

    from lens_magic.gpu import attention, onepass, steps

    reasons = {
        "the projection's": onepass.trouble(device, torch.float32),
        "decode steps'": steps.trouble(device, torch.bfloat16),
        "attention's": attention.trouble(device, torch.bfloat16),
    }
    return {whose: reason for whose, reason in reasons.items() if reason is not None}


def _rounds(shape: str, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Capturing and not capturing in turns, after both were warm."""
    import torch

    _attach(shape)
    for method in (_capturing, _not_capturing):
        method(WARM_TOKENS)
    from lens_magic.session import current

    found = []
    for _ in range(rounds):
        current().group.rank.store.pop("trajectories", None)  # the last run's states are no part of what was there before
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        capturing = _capturing(tokens)
        grown = torch.cuda.max_memory_allocated() - before
        found.append({"capturing": capturing, "not_capturing": _not_capturing(tokens), "peak_beyond_weights": grown})
    return found


def _attach(shape: str) -> None:
    """Random weights on the card, in place of whatever was attached before."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lens_magic.session import current

    current().close()  # the last model's weights make room
    gc.collect()
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config(shape), dtype=torch.bfloat16)
    lens.attach(model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(DEMO))


def _capturing(tokens: int) -> dict[str, float]:
    return dict(lens.run(PROMPT, tokens, capture=SITES, ignore_eos=True).timings)


def _not_capturing(tokens: int) -> dict[str, float]:
    return dict(lens.generate(PROMPT, tokens, ignore_eos=True).timings)


def table(whole: Mapping[str, Any]) -> str:
    """Markdown: a row a model."""
    about = whole["about"]
    header = [
        "shape",
        "tokens/s",
        "of the copy rate",
        "÷ not capturing",
        "projection ÷ generation",
        "peak beyond weights, GB",
        "N",
    ]
    lines = [
        f"{about['machine']['gpu']}, copies at {about['copy_bytes_per_s'] / 1e9:.0f} GB/s (read and written)"
        f"; T = {about['tokens']}, bfloat16, one rank.",
        *(f"Without {whose} kernels: {reason}." for whose, reason in about["kernels_not_used"].items()),
        "",
        "| " + " | ".join(header) + " |",
        "| --- " * len(header) + "|",
    ]
    for model in whole["models"]:
        rounds = model.get("rounds")
        if not rounds:
            lines.append(f"| {model['model']} | {model['left_out']} | | | | | 0 |")
            continue
        capturing, bare = ([each[name] for each in rounds] for name in ("capturing", "not_capturing"))
        rate = [each["tokens_per_s"] for each in capturing]
        reached = [100 * speed * model["bytes_a_token"] / about["copy_bytes_per_s"] for speed in rate]
        kept = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(capturing, bare, strict=True)]
        projection = [100 * each["project_s"] / (each["prefill_s"] + each["decode_s"]) for each in capturing]
        peak = statistics.median(each["peak_beyond_weights"] for each in rounds) / 1e9
        figures = [spread(rate), f"{spread(reached)} %", spread(kept), f"{spread(projection)} %"]
        lines.append(f"| {model['model']} | {' | '.join(figures)} | {peak:.2f} | {len(rounds)} |")
    return "\n".join(lines)
